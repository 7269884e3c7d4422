"""A generation back end before it is opened: its settings in YAML, how they open it, and what it needs.

The known ones are in engines.py; what an opened engine can do is in engine.py.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.data.images import ImageLoader
from vlm_distill.generation.engine import Engine, Identity, Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The model that answers, and how prompts reach it.

    `loaded` may have weights in its output layer alone, or none: `full` then gives all of them.
    `options` are those it was loaded with. `suppressed_ids` are never generated: those that the other model
    of a pair could not read.
    """

    loaded: LoadedModel
    load_images: ImageLoader
    options: LoadOptions
    suppressed_ids: tuple[int, ...] = ()
    full: Callable[[], LoadedModel] | None = None

    @property
    def identity(self) -> Identity:
        return Identity(
            fingerprint=self.loaded.fingerprint,
            stop_ids=self.loaded.stop_ids,
            suppressed_ids=self.suppressed_ids,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What is known of a task before anything is computed.

    `loaded` need not have weights; `options` and `suppressed_ids` are those of `Asked`.
    """

    loaded: LoadedModel
    options: LoadOptions
    sampling: Sampling
    suppressed_ids: tuple[int, ...] = ()


@runtime_checkable
class EngineConfig(Protocol):
    """What a config says of a back end: a record whose fields are its settings, and what they lead to."""

    @property
    def kind(self) -> str: ...

    def open(self, asked: Asked) -> AbstractContextManager[Engine]:
        """Return the engine as a context manager; leaving it frees what the engine holds.

        Raises:
            EngineError: it is missing or cannot serve this model.
        """

    def require(self, wanted: Wanted) -> None:
        """Raise beforehand the EngineError of anything that would be refused later, whatever the prompts.

        It may take as long as an import; the caller says which key of the config is meant.
        """
