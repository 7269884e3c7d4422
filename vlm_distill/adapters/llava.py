"""LLaVA: a vision tower, a projector and any causal language model behind one processor."""

from typing import Any

from vlm_distill.adapters.chat import image_text_adapter
from vlm_distill.adapters.vision_features import tower_features

TOWER = "vision_tower."


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


LLAVA = image_text_adapter(
    "llava",
    ("llava",),
    parts={
        "vision": ("model.vision_tower.",),
        "projector": ("model.multi_modal_projector.",),
        "language": ("model.language_model.", "lm_head."),
    },
    vision_features=tower_features,
    state_dict_names=name_on_disk,
)
