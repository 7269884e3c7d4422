"""Llama 3.2 Vision: the language model sees pictures by cross attention, in layers of their own.

A prompt without pictures leaves these layers out. In a batch with other prompts it gets features of zeros:
their attention has no biases, so it adds exactly nothing. A token before the first picture attends to all
tiles of its prompt (the class takes its mask away and switches off only what follows the attention), which in
a batch would be those of the padding too: so the mask is made here, and says which pictures are the prompt's.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from transformers import Cache

from vlm_distill.adapters.adapter import Adapter
from vlm_distill.adapters.body import cache_name, dtype_of, hidden_states

SEES = "cross_attention_mask"
"""Which tiles each token sees: [prompt, token, picture, tile], for a prompt without pictures none."""
PIXELS = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")


def cross_attending_states(
    model: nn.Module,
    tokens: Int[Tensor, "b t"] | Float[Tensor, "b t width"],
    attention_mask: Int[Tensor, "b seen"] | Shaped[Tensor, "b 1 t t"],
    position_ids: Int[Tensor, "*axes b t"],
    extras: Mapping[str, Tensor],
    cache: Cache | None,
) -> Float[Tensor, "b t width"]:
    """Return what `hidden_states` does, of prompts with and without pictures in one batch."""
    sees = extras.get(SEES)
    if sees is None:
        return hidden_states(model, tokens, attention_mask, position_ids, {}, cache)
    base: Any = model.base_model
    has_pictures = sees.flatten(1).any(dim=1)
    allowed = sees.bool()  # [b, t, picture, tile]
    features = None
    # A selection of prompts without pictures still carries their empty tensors.
    if len(extras.get("pixel_values", ())):
        features = _features(base, has_pictures, extras)
        allowed = allowed | _own_tiles(has_pictures, extras["aspect_ratio_ids"]) & _sees_nothing(sees)
    allowed = allowed | ~has_pictures[:, None, None, None]
    # From tiles to their features: [b, 1, t, key]
    keys = allowed.repeat_interleave(base.vision_model.num_patches, dim=3).flatten(2).unsqueeze(1)
    dtype = dtype_of(model)
    hidden: Tensor = base.language_model(
        input_ids=tokens,
        attention_mask=attention_mask,
        position_ids=position_ids,
        cross_attention_states=features,
        cross_attention_mask=torch.zeros_like(keys, dtype=dtype).masked_fill(~keys, torch.finfo(dtype).min),
        full_text_row_masked_out_mask=(~_sees_nothing(sees)).to(dtype).flatten(2).unsqueeze(1),
        **{cache_name(model): cache},
        use_cache=cache is not None,
    ).last_hidden_state
    # The last layer may live on another device than the first.
    return hidden.to(tokens.device)


def _features(
    base: Any, has_pictures: Bool[Tensor, " b"], extras: Mapping[str, Tensor]
) -> Float[Tensor, "b key width"]:
    """Return the projected features of all tiles, zeros for prompts without pictures."""
    seen = base.vision_model(**{name: extras[name] for name in PIXELS}).last_hidden_state
    # The tower may live on another device than the embeddings.
    found = base.multi_modal_projector(seen).flatten(1, 3).to(has_pictures.device)  # [pictured, key, width]
    every: Tensor = found.new_zeros((len(has_pictures), *found.shape[1:]))
    return every.index_put((has_pictures,), found)


def _own_tiles(
    has_pictures: Bool[Tensor, " b"], aspect_ratio_ids: Int[Tensor, "with_pictures picture"]
) -> Bool[Tensor, "b 1 picture 1"]:
    """Return which pictures are a prompt's, and no padding."""
    own = has_pictures[:, None].repeat(1, aspect_ratio_ids.shape[1])
    own[has_pictures] = aspect_ratio_ids > 0
    return own[:, None, :, None]


def _sees_nothing(sees: Int[Tensor, "b t picture tile"]) -> Bool[Tensor, "b t 1 1"]:
    return ~sees.flatten(2).any(dim=2)[..., None, None]


MLLAMA = Adapter(name="mllama", model_types=("mllama",), backbone=cross_attending_states)
