"""Generation with vLLM, for models that lie in a folder: students are saved before they are sampled.

vLLM loads the weights again, in worker processes that start with the first batch and end with `close`, so
that a stage whose responses are all stored never starts it. Which responses are stored and resumed is in
work.py; nothing else in the package imports vllm.

On a CPU a prompt is read in one piece: of one that is split over two steps the first step samples a token
too much and vLLM takes it back, which a generator on a CPU refuses.

Promised: the prompt ids are those that training reads (compared in every batch), the ids come back as they
were generated with their log-probabilities at temperature 1, forbidden ids have probability 0, and every row
has its own seed. Not promised: identical rows where other rows run beside them. The order in which a GPU sums
depends on the size of the batch, so what a resumed stage generates again may differ from what an
uninterrupted one would hold; what is stored stays as it is.
"""

import gc
import importlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

from pydantic import Field

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.chat import placeholder_ids
from vlm_distill.config import Record
from vlm_distill.data.images import ImageLoader
from vlm_distill.errors import EngineError, one_line
from vlm_distill.files import hash_json
from vlm_distill.generation.backend import Asked, Wanted
from vlm_distill.generation.engine import Completion, Sampling
from vlm_distill.generation.prompts import prompt_ids, prompt_lengths, response_text
from vlm_distill.generation.vllm_requirements import (
    INSTEAD,
    forbidden_ids,
    inside_output_layer,
    is_on_cpu,
    require_temperature,
    require_vllm,
    vllm_environment,
)
from vlm_distill.models.names import resolve
from vlm_distill.models.positions import max_positions
from vlm_distill.packages import provider_version
from vlm_distill.records import Example, Finish
from vlm_distill.stopping import children_without_interrupts

FINISHES: dict[str, Finish] = {"stop": "stop", "length": "length", "abort": "aborted", "error": "aborted"}


class VllmEngineConfig(Record):
    """Generation with vLLM, whose worker processes end with the stage.

    `batch_size` is the number of responses that are handed over at once, the most that a kill loses; what
    runs together inside is vLLM's to schedule, up to `max_num_seqs` responses (None: vLLM's default).
    `gpu_memory_utilization` is the share of each GPU that vLLM may take, beside models that stay loaded; on a
    CPU, VLLM_CPU_KVCACHE_SPACE (GiB) sizes the key-value cache. `max_model_len` is the room for a prompt and
    its answer in tokens (None: all positions of the model, for which the memory must suffice).
    `limit_images` is the most images in one prompt. `dtype` is written out, because vLLM reads "auto" in
    another way than transformers. `enforce_eager` starts sooner and generates slower.
    """

    kind: Literal["vllm"] = "vllm"
    batch_size: int = Field(default=1024, ge=1, le=10**6)
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    tensor_parallel_size: int = Field(default=1, ge=1, le=10**4)
    gpu_memory_utilization: float = Field(default=0.5, gt=0.0, le=1.0)
    max_model_len: int | None = Field(default=None, ge=1, le=10**9)
    max_num_seqs: int | None = Field(default=None, ge=1, le=10**6)
    limit_images: int = Field(default=4, ge=1, le=10**4)
    enforce_eager: bool = False

    def open(self, asked: Asked) -> "VllmEngine":
        """Return an engine that starts vLLM with its first batch and ends it when it is left."""
        require_vllm(asked.loaded, asked.options, asked.suppressed_ids)
        return VllmEngine(
            loaded=asked.loaded,
            load_images=asked.load_images,
            config=self,
            suppressed_ids=asked.suppressed_ids,
            trust_remote_code=asked.options.trust_remote_code,
        )

    def require(self, wanted: Wanted) -> None:
        require_temperature(wanted.sampling)
        require_vllm(wanted.loaded, wanted.options, wanted.suppressed_ids)


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
        version = provider_version("vllm") or ""
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
            EngineError: as `plan`; or vllm cannot start, fails, or reads a prompt in other ids than training.
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
        require_temperature(sampling)
        limit = self.config.limit_images
        for example in examples:
            if len(example.images) > limit:
                raise EngineError(
                    f"example {example.id}: {len(example.images)} images, but limit_images of the engine is "
                    f"{limit}; raise it"
                )

    def _started(self) -> Any:
        if self._llm is None:
            config = self.config
            optional: dict[str, Any] = {
                "max_model_len": config.max_model_len,
                "max_num_seqs": config.max_num_seqs,
            }
            if self.loaded.image_token_ids:
                optional["limit_mm_per_prompt"] = {"image": config.limit_images}
            where = f"{self.loaded.path}: vllm cannot start"
            with vllm_environment(), children_without_interrupts(), _vllm_errors(where):
                if is_on_cpu():
                    optional["enable_chunked_prefill"] = False
                folder = resolve(self.loaded.path, trust_remote_code=self.trust_remote_code)
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

    def _prompt(self, example: Example, expected: tuple[int, ...]) -> dict[str, Any]:
        if not example.images:
            return {"prompt_token_ids": list(expected)}
        # vLLM expands the placeholder of an image itself, so it gets what the chat template wrote.
        ids = placeholder_ids(self.loaded.processor, example)
        return {"prompt_token_ids": ids, "multi_modal_data": {"image": self.load_images(example)}}

    def _forbidding_bias(self) -> dict[int, float] | None:
        """Return a bias of -inf for every id that must not be generated, which is exact in float32 logits."""
        return dict.fromkeys(forbidden_ids(self.loaded, self.suppressed_ids), -math.inf) or None

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
            stop_token_ids=inside_output_layer(self.loaded, self.loaded.stop_ids),
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
        f"different from token {place} on; {INSTEAD}"
    )


@contextmanager
def _vllm_errors(what: str) -> Iterator[None]:
    """Turn what vLLM raises for a bad model, a lack of memory or a dead process into one EngineError."""
    own: type[Exception] = importlib.import_module("vllm.exceptions").VLLMError
    try:
        yield
    except (own, RuntimeError, ValueError, OSError) as error:
        raise EngineError(f"{what}: {one_line(error)}") from error
