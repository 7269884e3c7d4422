"""A generation back end: that of this process, one prompt at a time."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.errors import EngineError
from vlm_distill.generation.backend import Asked, Wanted
from vlm_distill.generation.engine import Completion, Engine, Sampling
from vlm_distill.generation.transformers_engine import TransformersEngineConfig
from vlm_distill.records import Example


@dataclass(frozen=True, kw_only=True, slots=True)
class OneByOneEngine:
    """The answers of `inner`: an engine decides how they are made, never which."""

    inner: Engine

    @property
    def settings(self) -> Mapping[str, str]:
        return {**self.inner.settings, "kind": "one_by_one"}

    def plan(self, examples: Sequence[Example], sampling: Sampling) -> list[list[int]]:
        return [[index] for batch in self.inner.plan(examples, sampling) for index in batch]

    def generate(self, examples: Sequence[Example], sampling: Sampling) -> list[Completion]:
        return self.inner.generate(examples, sampling)


@dataclass(frozen=True, kw_only=True, slots=True)
class OneByOne:
    """What opens the engine, and what it needs before anything is computed."""

    kind: Literal["one_by_one"] = "one_by_one"

    def open(self, asked: Asked) -> AbstractContextManager[Engine]:
        _require_text(asked.loaded)
        with TransformersEngineConfig().open(asked) as inner:
            return nullcontext(OneByOneEngine(inner=inner))

    def require(self, wanted: Wanted) -> None:
        _require_text(wanted.loaded)


def _require_text(loaded: LoadedModel) -> None:
    if loaded.image_token_ids:
        raise EngineError(f"one_by_one reads text alone, and {loaded.path} reads images")
