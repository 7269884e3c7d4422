"""The models of a run: what a config names, and a teacher whose body is in memory only while it is needed."""

import gc
from dataclasses import replace

import torch

from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.conformance.prove import settle, weighed
from vlm_distill.conformance.verdict import Verdict
from vlm_distill.models.feature_store import FeatureStore
from vlm_distill.models.fingerprint import locate
from vlm_distill.models.load import load_model
from vlm_distill.models.output_layer import light_model
from vlm_distill.models.skeleton import load_skeleton
from vlm_distill.models.vision_cache import with_vision_cache
from vlm_distill.processes import local_device
from vlm_distill.progress import Log
from vlm_distill.runs.config import ModelConfig
from vlm_distill.runs.usable import require_answers, require_readable_prompts


def load(config: ModelConfig, device: str, verdict: Verdict) -> LoadedModel:
    """Load the model that a config names, as its verdict has measured it.

    `device` "auto" is the accelerator of this machine, or the CPU.
    """
    return require_answers(settle(load_model(config.model, load_options(config, device)), verdict))


def load_options(config: ModelConfig, device: str) -> LoadOptions:
    return LoadOptions(
        dtype=config.dtype,
        device=local_device(device),
        trust_remote_code=config.trust_remote_code,
        placement=config.placement,
        quantisation=config.quantisation,
    )


def without_weights(config: ModelConfig, options: LoadOptions) -> LoadedModel:
    """Return the model that a config names without weights, but with the fingerprint of its files."""
    # Before anything of it is read: what was damaged since a run wrote it is said as that.
    known = locate(config.model, options)[1]
    skeleton = load_skeleton(config.model, trust_remote_code=config.trust_remote_code)
    require_readable_prompts(skeleton)
    return replace(skeleton, fingerprint=known)


class Teacher:
    """The teacher of a run.

    `verdict` is that on its structure. `loaded` is what training needs: the full model, or where
    `keeps_head_only` its output layer, which knows tokenizer, processor and fingerprint too.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        device: str,
        keeps_head_only: bool,
        vision_cache: FeatureStore | None,
        verdict: Verdict,
        log: Log,
    ) -> None:
        self._config, self._device, self._vision_cache, self._log = config, device, vision_cache, log
        self._verdict = verdict
        self._full: LoadedModel | None = None
        if keeps_head_only:
            self.loaded = settle(light_model(config.model, load_options(config, device)), verdict)
        else:
            self.loaded = self._full = self._load()

    def full(self) -> LoadedModel:
        """Return the model with all its weights; the first call after a release loads it."""
        if self._full is None:
            self._log(f"teacher: {self._config.model} is loaded")
            self._full = self._load()
        return self._full

    def _load(self) -> LoadedModel:
        loaded = weighed(load(self._config, self._device, self._verdict), log=self._log)
        # Else autocast would keep a copy in half precision of every weight.
        loaded.model.requires_grad_(False)
        return with_vision_cache(loaded, self._vision_cache)

    def release(self) -> None:
        """Free the memory of all but the output layer, where training needs no more."""
        if self._full is None or self._full is self.loaded:
            return
        self._full = None
        # Modules refer to each other through hooks.
        gc.collect()
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
        self._log("teacher: only its output layer stays in memory")
