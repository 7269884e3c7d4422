"""What generation asks of a back end. No torch.

Stage logic (what is stored, what is resumed) is in work.py; the numerics of sampling are in sampling.py.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pydantic import Field, model_validator

from vlm_distill.config import Record
from vlm_distill.files import hash_json
from vlm_distill.records import Example, Finish


class Sampling(Record):
    """How responses are drawn.

    `temperature` 0 is greedy, `top_k` 0 and `top_p` 1 are off. `stop` strings end a response beside the
    model's stop tokens; they are cut from the text, the token ids stay as generated.
    """

    temperature: float = Field(default=1.0, ge=0.0, le=1e6)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0, le=10**9)
    max_new_tokens: int = Field(default=64, ge=1, le=10**6)
    num_samples: int = Field(default=1, ge=1, le=10**6)
    stop: tuple[str, ...] = ()
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> "Sampling":
        if 0 < self.temperature < 1e-3:
            raise ValueError("a temperature above 0 and below 0.001 overflows: set 0, which is greedy")
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Who answers, as far as answers depend on it.

    `fingerprint` is that of weights and files. `stop_ids` end a response: a student stops where its teacher
    stops too, which its own files need not say. `suppressed_ids` are never generated: those that the other
    model of a pair could not read.
    """

    fingerprint: str
    stop_ids: tuple[int, ...]
    suppressed_ids: tuple[int, ...] = ()

    def key(self) -> list[object]:
        """Return, as JSON, what is equal of two models that give the same answers."""
        return [self.fingerprint, sorted(self.stop_ids), sorted(self.suppressed_ids)]


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
