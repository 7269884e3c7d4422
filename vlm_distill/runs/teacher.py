"""The models of a run: what a config names, and a teacher whose body is in memory only while it is needed."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.data.images import ImageLoader
from vlm_distill.generation.engine import Completion, Engine, Sampling
from vlm_distill.generation.transformers_engine import TransformersEngine
from vlm_distill.models.feature_store import FeatureStore
from vlm_distill.models.load import load_model
from vlm_distill.models.output_layer import light_model
from vlm_distill.models.vision_cache import with_vision_cache
from vlm_distill.processes import local_device
from vlm_distill.progress import Log
from vlm_distill.records import Example
from vlm_distill.runs.config import ModelConfig
from vlm_distill.teacher_cache.store import CacheConfig


def load(config: ModelConfig, device: str) -> LoadedModel:
    """Load the model that a config names; `device` "auto" is the accelerator of this machine, or the CPU."""
    return load_model(config.model, load_options(config, device))


def load_options(config: ModelConfig, device: str) -> LoadOptions:
    return LoadOptions(
        dtype=config.dtype,
        device=local_device(device),
        trust_remote_code=config.trust_remote_code,
        placement=config.placement,
        quantisation=config.quantisation,
    )


Whole = Callable[[], LoadedModel]
"""Gives a model with all its weights, where the one at hand has some."""


class TeacherModel:
    """The teacher of a run.

    `loaded` is what training needs: the whole model, or with a cache its output layer, which knows tokenizer,
    processor and fingerprint too. `body` is the whole model, `release` lets it go.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        device: str,
        cache: CacheConfig | None,
        vision_cache: FeatureStore | None,
        log: Log,
    ) -> None:
        self._config, self._device, self._vision_cache, self._log = config, device, vision_cache, log
        self._body: LoadedModel | None = None
        self.is_light = cache is not None
        self.loaded = (
            light_model(config.model, load_options(config, device)) if self.is_light else self._load()
        )

    def body(self) -> LoadedModel:
        """Return the whole teacher; the first call after a release loads it."""
        if not self.is_light:
            return self.loaded
        if self._body is None:
            self._log(f"teacher: {self._config.model} is loaded")
            self._body = self._load()
        return self._body

    def _load(self) -> LoadedModel:
        loaded = load(self._config, self._device)
        # Else autocast would keep a copy in half precision of every weight.
        loaded.model.requires_grad_(False)
        return with_vision_cache(loaded, self._vision_cache)

    @property
    def whole(self) -> Whole | None:
        """`body` where `loaded` has not all weights."""
        return self.body if self.is_light else None

    def release(self) -> None:
        """Free the memory of all but the output layer, where there is a cache."""
        if self._body is None:
            return
        self._body = None
        # Modules refer to each other through hooks.
        gc.collect()
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
        self._log("teacher: only its output layer stays in memory")


def engine_of(
    loaded: LoadedModel,
    load_images: ImageLoader,
    *,
    batch_size: int,
    suppressed_ids: tuple[int, ...] = (),
    whole: Whole | None = None,
) -> Engine:
    """Return the engine inside this process; with `whole` it loads that model once something is generated."""

    def engine(model: LoadedModel) -> TransformersEngine:
        return TransformersEngine(
            loaded=model, load_images=load_images, batch_size=batch_size, suppressed_ids=suppressed_ids
        )

    return (
        engine(loaded)
        if whole is None
        else DeferredEngine(light=engine(loaded), whole=lambda: engine(whole()))
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class DeferredEngine:
    """Plans with a model that has no weights; `whole` loads one that has them, to generate."""

    light: TransformersEngine
    whole: Callable[[], TransformersEngine]

    @property
    def fingerprint(self) -> str:
        return self.light.fingerprint

    @property
    def settings(self) -> Mapping[str, str]:
        return self.light.settings

    def plan(self, examples: Sequence[Example], sampling: Sampling) -> list[list[int]]:
        return self.light.plan(examples, sampling)

    def generate(self, examples: Sequence[Example], sampling: Sampling) -> list[Completion]:
        return self.whole().generate(examples, sampling)
