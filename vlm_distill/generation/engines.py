"""The generation back ends by kind, and the one way to each of them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from typing import Annotated, TypeAlias

from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.config import Kinds
from vlm_distill.errors import EngineError
from vlm_distill.generation.backend import Asked, EngineConfig
from vlm_distill.generation.engine import Engine, OpenEngine
from vlm_distill.generation.transformers_engine import TransformersEngineConfig
from vlm_distill.generation.vllm_engine import VllmEngineConfig

ENGINES: dict[str, type[EngineConfig]] = {
    "transformers": TransformersEngineConfig,
    "vllm": VllmEngineConfig,
}
AnyEngine: TypeAlias = Annotated[EngineConfig, Kinds("vlm_distill.engines", tuple(ENGINES.values()))]


@contextmanager
def opened_once(config: EngineConfig, asked: Asked) -> Iterator[OpenEngine]:
    """Yield what opens an engine when it is first called, and then gives the same one to several jobs."""
    with ExitStack() as stack:

        @cache
        def engine() -> Engine:
            return stack.enter_context(config.open(asked))

        yield lambda: nullcontext(engine())


def require_engine(config: EngineConfig, loaded: LoadedModel, *, options: LoadOptions, where: str) -> None:
    """Refuse an engine that cannot generate with a model, which need not have weights.

    Raises:
        EngineError: one line that begins with `where`, the key of the config.
    """
    try:
        config.require(loaded, options)
    except EngineError as error:
        raise EngineError(f"{where}: {error}") from None


def live_config(config: EngineConfig) -> TransformersEngineConfig:
    """Return how a student in the middle of its training answers: in this process, which has its weights."""
    # The batch of another engine counts what is handed over, not what is decoded together.
    return config if isinstance(config, TransformersEngineConfig) else TransformersEngineConfig()
