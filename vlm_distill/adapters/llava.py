"""LLaVA: a vision tower, a projector and any causal language model behind one processor.

The features of its tower are one row per image, so that a frozen tower can run once per image: what the
projector reads can be kept, and put back into a prompt later.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlm_distill.adapters.adapter import Adapter
from vlm_distill.adapters.body import dtype_of

TOWER = "vision_tower."


def image_features(
    model: nn.Module, pixels: Float[Tensor, "image channel height width"]
) -> Float[Tensor, "image token features"]:
    """Return what the projector reads: the layers and tokens that the config selects."""
    loaded: Any = model
    tower, config = loaded.base_model.vision_tower, loaded.config
    states = tower(pixels.to(next(tower.parameters()).dtype), output_hidden_states=True).hidden_states
    layers = config.vision_feature_layer
    # "default" drops the class token, of every layer where several are read.
    first = 1 if config.vision_feature_select_strategy == "default" else 0
    # Each state is [image, token, width]; several lie side by side in [image, token, layers * width].
    chosen = [states[layer][:, first:] for layer in ([layers] if isinstance(layers, int) else layers)]
    return torch.cat(chosen, dim=-1)


def insert_features(
    model: nn.Module, input_ids: Int[Tensor, "b t"], features: Float[Tensor, "image token features"]
) -> Float[Tensor, "b t width"]:
    """Return the embeddings of the ids with projected features in the places of image tokens, in order."""
    loaded: Any = model
    embeddings: Tensor = loaded.get_input_embeddings()(input_ids)
    projected = loaded.base_model.multi_modal_projector(features.to(dtype_of(model)))
    is_image = (input_ids == loaded.config.image_token_id).to(embeddings.device)
    # Images stand in the order of their places, so [image, token, width] is read row by row.
    return embeddings.masked_scatter(
        is_image.unsqueeze(-1), projected.to(embeddings.device, embeddings.dtype)
    )


def feature_settings(config: Any) -> dict[str, Any]:
    """Return which layers and tokens of the tower are read, nothing where it reads images of any size."""
    vision = config.vision_config
    if not hasattr(vision, "image_size") or vision.model_type == "pixtral":
        return {}
    keys = ("vision_feature_layer", "vision_feature_select_strategy")
    return {key: getattr(config, key) for key in keys}


def name_on_disk(config: Any, name: str) -> str:
    """Return the name under which a tensor of the model is stored: that of vLLM and of older transformers.

    transformers 5.18 and later drop the `vision_model.` level of a CLIP tower on disk; vLLM wants it and
    transformers reads both.
    """
    is_clip = getattr(getattr(config, "vision_config", None), "model_type", "") == "clip_vision_model"
    rest = name.removeprefix(TOWER)
    if not is_clip or rest == name or rest.startswith("vision_model."):
        return name
    return f"{TOWER}vision_model.{rest}"


LLAVA = Adapter(
    name="llava",
    model_types=("llava",),
    parts={
        "vision": ("model.vision_tower.",),
        "projector": ("model.multi_modal_projector.",),
        "language": ("model.language_model.", "lm_head."),
    },
    image_features=image_features,
    insert_features=insert_features,
    feature_settings=feature_settings,
    state_dict_names=name_on_disk,
)
