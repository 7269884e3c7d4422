"""What generation asks of a back end. No torch.

Stage logic (what is stored, what is resumed) is in work.py; the numerics of sampling are in sampling.py.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from pydantic import Field, model_validator

from vlm_distill.config import Record
from vlm_distill.files import hash_json
from vlm_distill.records import Example, Finish


class Sampling(Record):
    """How responses are drawn.

    `temperature` 0 is greedy, `top_k` 0 and `top_p` 1 are off. `stop` strings end a response beside the
    model's stop tokens; they are cut from the text, the token ids stay as generated.
    """

    temperature: float = Field(default=1.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0)
    max_new_tokens: int = Field(default=64, ge=1)
    num_samples: int = Field(default=1, ge=1)
    stop: tuple[str, ...] = ()
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> "Sampling":
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(
                "temperature 0 gives the same response every time: set num_samples to 1 or raise temperature"
            )
        if "" in self.stop:
            raise ValueError("an empty stop string ends every response at once: remove it from stop")
        return self

    def hash(self) -> str:
        """Return the hash that responses carry in `Response.sampling`."""
        return hash_json(self.model_dump(mode="json"))


class TransformersEngineConfig(Record):
    """Generation inside this process. `batch_size` is the number of responses that are decoded together."""

    kind: Literal["transformers"] = "transformers"
    batch_size: int = Field(default=128, ge=1)


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
    batch_size: int = Field(default=1024, ge=1)
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    tensor_parallel_size: int = Field(default=1, ge=1)
    gpu_memory_utilization: float = Field(default=0.5, gt=0.0, le=1.0)
    max_model_len: int | None = Field(default=None, ge=1)
    max_num_seqs: int | None = Field(default=None, ge=1)
    limit_images: int = Field(default=4, ge=1)
    enforce_eager: bool = False


# Tagged by `kind`.
EngineConfig = TransformersEngineConfig | VllmEngineConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One sampled answer as an engine returns it.

    `token_ids` end with the stop token when a stop token ended the response. `token_log_probs` are in nats,
    under the model at temperature 1 and without top-k or top-p, one per token id. An aborted completion holds
    the tokens before the failure.
    """

    example_id: str
    sample_index: int
    token_ids: tuple[int, ...]
    text: str
    finish: Finish
    prompt_ids_hash: str
    token_log_probs: tuple[float, ...] | None = None


@runtime_checkable
class Engine(Protocol):
    """A generation back end."""

    @property
    def settings(self) -> Mapping[str, str]:
        """What is recorded beside the responses: the kind of back end, its version, the dtype.

        They decide no more than how sums are rounded and which prompts fit, so responses are good under any.
        The batch size does not belong here: a row's answer does not depend on it.
        """

    def plan(self, examples: Sequence[Example], sampling: Sampling) -> list[list[int]]:
        """Return batches of indices into `examples`: a pure function of prompts, config and seed.

        A prompt that does not fit the model's context together with `max_new_tokens` is in no batch.
        """

    def generate(self, examples: Sequence[Example], sampling: Sampling) -> list[Completion]:
        """Return the completions of one batch, grouped by example in the given order, samples in order."""


# Opens an engine, or says in an EngineError what is missing for it; called only when something must be
# generated, so that stored responses need no engine.
OpenEngine = Callable[[], AbstractContextManager[Engine]]
