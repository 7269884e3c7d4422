"""What must be there before vLLM generates, said in one line before anything else is done."""

import importlib
import logging
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.alignment.tokens import vocabulary_width
from vlm_distill.errors import EngineError, one_line
from vlm_distill.generation.decoding import own_suppressed_ids
from vlm_distill.generation.engine import Sampling
from vlm_distill.models.gguf import is_gguf
from vlm_distill.packages import declared_versions, provider_version

logger = logging.getLogger(__name__)
INSTALL = "run `pip install 'vlm-distill[vllm]'` (CUDA)"
INSTEAD = "choose the engine `kind: transformers`"
# What vLLM's samplers accept: lower temperatures are raised without an error, higher ones refused.
TEMPERATURES = (0.01, 2.0)
# The width of its table of biased ids on a GPU.
MAX_FORBIDDEN = 1024
# vLLM takes these from the environment alone; what a user has set there wins. Its scheduler runs in this
# process: one of its own would outlive a killed run and keep the GPU's memory, while workers end with their
# parent. A forked worker would inherit the locks of torch's threads and could hang, and vLLM reports its use
# over the network unless told not to.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def require_temperature(sampling: Sampling) -> None:
    """Raise an EngineError for a temperature that vLLM would refuse or change."""
    low, high = TEMPERATURES
    if sampling.temperature != 0 and not low <= sampling.temperature <= high:
        raise EngineError(
            f"temperature: vllm samples between {low} and {high} (or greedily at 0), got "
            f"{sampling.temperature}; change it, or {INSTEAD}"
        )


def inside_output_layer(loaded: LoadedModel, ids: Iterable[int]) -> list[int]:
    """Return those of some ids that the model has, in order, each once."""
    width = vocabulary_width(loaded)
    return sorted({token_id for token_id in ids if token_id < width})


def forbidden_ids(loaded: LoadedModel, suppressed_ids: Iterable[int]) -> list[int]:
    """Return the ids that must not be generated: those of the model itself, and those that are given."""
    return inside_output_layer(loaded, [*own_suppressed_ids(loaded), *suppressed_ids])


def require_vllm(loaded: LoadedModel, options: LoadOptions, suppressed_ids: Sequence[int] = ()) -> None:
    """Raise an EngineError where vLLM is missing, of another version or broken, or cannot serve the model.

    When nothing else is wrong vLLM is imported, which takes about ten seconds.
    """
    # What an installation would not change comes first.
    _require_few_forbidden(loaded, suppressed_ids)
    _require_one_process()
    _require_installed()
    _require_same_weights(loaded, options)
    _import()
    if is_on_cpu():
        _require_head_size(loaded)


def is_on_cpu() -> bool:
    """Return whether the installed vLLM generates on the CPU; imports parts of it."""
    is_cpu: bool = importlib.import_module("vllm.platforms").current_platform.is_cpu()
    return is_cpu


@contextmanager
def vllm_environment() -> Iterator[None]:
    """Set the variables of vLLM that are not set, and take them away again."""
    added = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _require_one_process() -> None:
    # Every process would start vLLM on the first GPU, and ending it takes down torch's process group.
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise EngineError(
            "vllm works in a job of one process; start it without a launcher (tensor_parallel_size spreads a "
            f"model over GPUs), or {INSTEAD}"
        )


def _require_installed() -> None:
    found, declared = provider_version("vllm"), declared_versions("vllm")
    if found is None:
        raise EngineError(f"vllm is not installed; {INSTALL}, or {INSTEAD}")
    if not declared.contains(found, prereleases=True):
        raise EngineError(f"vllm: expected a version {declared}, found {found}; {INSTALL}, or {INSTEAD}")


def _require_same_weights(loaded: LoadedModel, options: LoadOptions) -> None:
    """Refuse a model whose weights vLLM would not load as this process does."""
    if is_gguf(Path(loaded.path)):
        command = shlex.join(["vlm-distill", "export", loaded.path, Path(loaded.path).stem])
        raise EngineError(
            f"vllm reads model folders, and {loaded.path} is a GGUF file; run `{command}` and give the "
            f"folder in its place, or {INSTEAD}"
        )
    if options.quantisation is not None:
        raise EngineError(
            f"vllm would sample from the full weights of {loaded.path}, which is quantised in this process; "
            f"leave `quantisation` out, or {INSTEAD}"
        )


def _require_few_forbidden(loaded: LoadedModel, suppressed_ids: Sequence[int]) -> None:
    number = len(forbidden_ids(loaded, suppressed_ids))
    if number > MAX_FORBIDDEN:
        raise EngineError(
            f"{loaded.path}: {number:,} ids must not be generated, and vllm can forbid {MAX_FORBIDDEN:,}; "
            f"{INSTEAD}"
        )


def _import() -> None:
    if "vllm" not in sys.modules:
        logger.info("vllm: imported to see whether it works, which takes a few seconds")
    try:
        with vllm_environment():
            # Its modules are imported when they are asked for.
            _ = importlib.import_module("vllm").LLM
    # What a broken or half upgraded installation raises; records of pydantic refuse with a ValueError.
    except (ImportError, AttributeError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise EngineError(
            f"vllm cannot be imported: {one_line(error)}; {INSTALL} anew, or {INSTEAD}"
        ) from None


def _require_head_size(loaded: LoadedModel) -> None:
    """Refuse a head dimension that the attention of a CPU lacks; a GPU has kernels for all multiples of 8."""
    model_config: Any = loaded.model.config
    text = model_config.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    attention = importlib.import_module("vllm.v1.attention.backends.cpu_attn").CPUAttentionBackend
    if not attention.supports_head_size(size):
        known = ", ".join(map(str, attention.get_supported_head_sizes()))
        raise EngineError(
            f"{loaded.path}: its attention heads have {size} dimensions, and vllm on a CPU knows {known}; "
            f"take another model, or {INSTEAD}"
        )
