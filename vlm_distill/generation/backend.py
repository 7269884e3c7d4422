"""What is known of a generation back end: its settings in YAML, how it is opened, and what it needs.

The known ones are in engines.py; what an opened engine can do is in engine.py.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, TypeVar

from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.config import Record
from vlm_distill.data.images import ImageLoader
from vlm_distill.generation.engine import Engine

ConfigT = TypeVar("ConfigT", bound=Record)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The model that answers, and how prompts reach it.

    `loaded` may have weights in its output layer alone: then `full` gives the model with all of them.
    `options` are those it was loaded with. `suppressed_ids` are never generated: those that the other model
    of a pair could not read.
    """

    loaded: LoadedModel
    load_images: ImageLoader
    options: LoadOptions
    suppressed_ids: tuple[int, ...] = ()
    full: Callable[[], LoadedModel] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend(Generic[ConfigT]):
    """A generation back end.

    `config` is its record in YAML, whose `kind` names it. `open(config, asked)` gives the engine as a context
    manager; leaving it frees what the engine holds, and an engine that cannot serve is an EngineError.
    `require(config, loaded, options)` raises that EngineError beforehand, for a model that need not have
    weights; it may take as long as an import, and the caller says which key of the config is meant.
    """

    config: type[ConfigT]
    open: Callable[[ConfigT, Asked], AbstractContextManager[Engine]]
    require: Callable[[ConfigT, LoadedModel, LoadOptions], None]
