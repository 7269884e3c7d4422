"""Features of a frozen vision tower, computed once per image.

A key is the hash of the pixels that the processor made (of the image and the processor's settings, that is)
beside that of the tower: its weights, and which layers and tokens are read. So models with the same tower
share their features, and a tower that learned never finds those of before. Where they are kept is in
feature_store.py.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vlm_distill.adapters.adapter import FEATURES, PIXELS, LoadedModel
from vlm_distill.batches import PromptBatch
from vlm_distill.errors import AdapterError
from vlm_distill.files import hash_json
from vlm_distill.models.feature_store import FeatureStore
from vlm_distill.models.fingerprint import weights_fingerprint
from vlm_distill.models.placement import has_plain_weights, is_quantised

ENCODED_TOGETHER = 32
# Keys of a tower's config that do not change what it computes beyond rounding.
INCIDENTAL = ("architectures", "dtype", "torch_dtype", "transformers_version")


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedTower:
    """Exchanges pixels for the features of a tower whose weights have the hash `key`."""

    cache: FeatureStore
    key: str

    def __call__(self, loaded: LoadedModel, prompts: PromptBatch) -> PromptBatch:
        """Return the prompts with `FEATURES` in the place of `PIXELS`, still on the CPU."""
        pixels = prompts.extras.get(PIXELS)
        if pixels is None or not len(pixels):
            return prompts
        keys = [f"{self.key}-{_hash(row)}" for row in pixels]
        found = self._known(keys)
        missing = {key: row for key, row in zip(keys, pixels, strict=True) if key not in found}
        found |= self._compute(loaded, missing)
        self.cache.num_computed += len(missing)
        self.cache.num_found += len(keys) - len(missing)
        features = torch.stack([found[key] for key in keys])  # [image, token, features]
        _require_places(loaded, prompts, features)
        return replace(
            prompts,
            extras={FEATURES: features, **_without_pixels(prompts.extras)},
            extra_counts={FEATURES: prompts.extra_counts[PIXELS], **_without_pixels(prompts.extra_counts)},
        )

    def _known(self, keys: list[str]) -> dict[str, Tensor]:
        known = {key: self.cache.get(key) for key in dict.fromkeys(keys)}
        return {key: value for key, value in known.items() if value is not None}

    # Tensors of inference mode could not be saved for a later backward pass through the projector.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _compute(self, loaded: LoadedModel, pixels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tower, encode = _tower(loaded), loaded.adapter.image_features
        assert encode is not None
        was_training = tower.training
        # On a CPU a resumed run repeats every bit, whatever was in the cache: each image runs alone.
        size = 1 if loaded.device.type == "cpu" else ENCODED_TOGETHER
        names, computed = list(pixels), dict[str, Tensor]()
        tower.eval()
        for start in range(0, len(names), size):
            some = names[start : start + size]
            features = encode(loaded.model, torch.stack([pixels[name] for name in some]).to(loaded.device))
            # A row alone would keep the tensor of all rows alive.
            computed |= {name: row.cpu().clone() for name, row in zip(some, features, strict=True)}
        tower.train(was_training)
        for name, value in computed.items():
            self.cache.put(name, value)
        return computed


def with_vision_cache(loaded: LoadedModel, cache: FeatureStore | None) -> LoadedModel:
    """Return the model with its tower's features taken from `cache`, for as long as the tower stays as it is.

    Without a cache, and where `why_not_cached` says why, the model is returned as it is.
    """
    if cache is None or why_not_cached(loaded):
        return loaded
    return replace(loaded, vision_cache=CachedTower(cache=cache, key=tower_key(loaded)))


def why_not_cached(loaded: LoadedModel) -> str:
    """Return the reason why features of this model cannot be kept, empty where they can."""
    if "vision" not in loaded.adapter.parts:
        return "the model reads text only"
    if loaded.adapter.feature_settings is None:
        return f"family {loaded.adapter.name!r} does not hand its images over as one row of features each"
    if not _feature_settings(loaded):
        return "its tower reads images of any size"
    return ""


def without_vision_cache(loaded: LoadedModel) -> LoadedModel:
    """Return the model with its tower in every forward, as a tower that learns needs."""
    return replace(loaded, vision_cache=None)


def tower_key(loaded: LoadedModel) -> str:
    """Return the hash of what decides a tower's features: weights, dtype and config, layers and tokens."""
    model: Any = loaded.model
    tower, reading = _tower(loaded), _feature_settings(loaded)
    is_plain = has_plain_weights(tower) and not is_quantised(model)
    weights = weights_fingerprint(tower) if is_plain else [loaded.fingerprint, str(model.dtype)]
    settings = {
        name: value
        for name, value in tower.config.to_dict().items()
        if not name.startswith("_") and name not in INCIDENTAL
    }
    return hash_json([type(tower).__name__, weights, settings, list(reading.values())])[:32]


def _tower(loaded: LoadedModel) -> Any:
    (prefix,) = loaded.adapter.parts["vision"]
    return loaded.model.get_submodule(prefix.removesuffix("."))


def _feature_settings(loaded: LoadedModel) -> Mapping[str, Any]:
    assert loaded.adapter.feature_settings is not None
    return loaded.adapter.feature_settings(loaded.model.config)


def _hash(pixels: Float[Tensor, "channel height width"]) -> str:
    digest = hashlib.sha256(f"{pixels.dtype} {tuple(pixels.shape)}".encode())
    digest.update(pixels.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _without_pixels(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != PIXELS}


def _require_places(
    loaded: LoadedModel, prompts: PromptBatch, features: Float[Tensor, "image token features"]
) -> None:
    """Refuse prompts with more or fewer image tokens than features: masked_scatter would not notice."""
    places = int(torch.isin(prompts.input_ids, torch.tensor(loaded.image_token_ids)).sum())
    if places != features.shape[0] * features.shape[1]:
        raise AdapterError(
            f"{loaded.path}: its processor made {places} image tokens for {features.shape[0]} images of "
            f"{features.shape[1]} features each; they must agree: check patch_size and "
            f"{', '.join(_feature_settings(loaded))} of its processor and config"
        )
