"""The generation back ends by kind, and the one way to each of them.

A student in the middle of its training has another way: its weights are in this process alone, so that the
engine of this process is made for it where it trains (`live_config`).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from typing import Annotated, TypeAlias

from vlm_distill.config import Kinds
from vlm_distill.errors import EngineError
from vlm_distill.generation.backend import Asked, EngineConfig, Wanted
from vlm_distill.generation.engine import Engine, OpenEngine
from vlm_distill.generation.transformers_engine import TransformersEngineConfig
from vlm_distill.generation.vllm_engine import VllmEngineConfig

ENGINES: dict[str, type[EngineConfig]] = {
    "transformers": TransformersEngineConfig,
    "vllm": VllmEngineConfig,
}
AnyEngine: TypeAlias = Annotated[EngineConfig, Kinds("vlm_distill.engines", tuple(ENGINES.values()))]


@contextmanager
def opened(config: EngineConfig, asked: Asked, *, where: str) -> Iterator[Engine]:
    """Yield the engine.

    Raises:
        EngineError: it cannot serve this model: one line that begins with `where`, the key of the config.
    """
    with ExitStack() as stack:
        with _said_of(where):
            engine = stack.enter_context(config.open(asked))
        yield engine


@contextmanager
def opened_once(config: EngineConfig, asked: Asked, *, where: str) -> Iterator[OpenEngine]:
    """Yield what opens an engine as `opened` when it is first called, and then gives it to several jobs."""
    with ExitStack() as stack:

        @cache
        def engine() -> Engine:
            return stack.enter_context(opened(config, asked, where=where))

        yield lambda: nullcontext(engine())


def require_engine(config: EngineConfig, wanted: Wanted, *, where: str) -> None:
    """Refuse an engine that cannot do what is wanted.

    Raises:
        EngineError: one line that begins with `where`, the key of the config.
    """
    with _said_of(where):
        config.require(wanted)


@contextmanager
def _said_of(where: str) -> Iterator[None]:
    """Begin the line of a refusal with the key of the engine."""
    try:
        yield
    except EngineError as error:
        raise EngineError(f"{where}: {error}") from None


def live_config(config: EngineConfig) -> TransformersEngineConfig:
    """Return how a student in the middle of its training answers: in this process, which has its weights."""
    # The batch of another engine counts what is handed over, not what is decoded together.
    return config if isinstance(config, TransformersEngineConfig) else TransformersEngineConfig()
