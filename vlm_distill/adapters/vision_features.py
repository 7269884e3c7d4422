"""What the vision tower of a LLaVA gives for images, before the projector, and the way back into a forward.

So a frozen tower can run once per image. Families whose images enter the language model in other ways
(windows of several sizes, features at several depths) have no such function in their adapter.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

PIXELS = "pixel_values"
FEATURES = "image_features"
"""The name in `PromptBatch.extras` of features that take the place of pixels, one row per image."""


def tower_features(
    model: nn.Module, pixels: Float[Tensor, "image channel height width"]
) -> Float[Tensor, "image token features"]:
    """Return what the projector of a LLaVA reads: the layers and tokens that its config selects."""
    loaded: Any = model
    base, config = loaded.base_model, loaded.config
    dtype = next(parameter.dtype for parameter in base.vision_tower.parameters())
    states = base.vision_tower(pixels.to(dtype), output_hidden_states=True).hidden_states
    layer = config.vision_feature_layer
    # "default" drops the class token, of every layer where several are read.
    first = 1 if config.vision_feature_select_strategy == "default" else 0
    return torch.cat([states[one][:, first:] for one in ([layer] if isinstance(layer, int) else layer)], -1)


def forward_inputs(
    model: nn.Module, input_ids: Int[Tensor, "b t"], extras: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the arguments of a forward beyond mask, positions and cache.

    Floating-point extras get the dtype of the model. Tower features go through the projector into the places
    of their image tokens, and the model reads embeddings instead of ids.
    """
    # A selection of prompts without images still carries their empty tensors. Processors make float32 pixels;
    # quantised weights are integers.
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    present = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in extras.items()
        if value.shape[0] > 0
    }
    features = present.pop(FEATURES, None)
    if features is None:
        return {"input_ids": input_ids, **present}
    loaded: Any = model
    base = loaded.base_model
    embeddings: Tensor = loaded.get_input_embeddings()(input_ids)
    projected = base.multi_modal_projector(features).to(embeddings.device, embeddings.dtype)
    places = (input_ids == loaded.config.image_token_id).unsqueeze(-1).to(embeddings.device)
    return {"inputs_embeds": embeddings.masked_scatter(places, projected), **present}
