"""What tiny image-text families of many kinds share: a tower, tokens by name, a template, the model."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.families.build import IMAGE_TEXT_TEMPLATE, Tiny, byte_tokenizer, randomised

SIZE, PATCH = 16, 4
SQUARE = {"height": SIZE, "width": SIZE}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": PATCH,
}
SIGLIP = {"model_type": "siglip_vision_model", **TOWER, "vision_use_head": False}


def tokenizer_of(image: str, *more: str, **tokens: str) -> Any:
    """Return a byte tokenizer that knows tokens by the names that the family has for them."""
    named = {"image_token": image, **tokens}
    return byte_tokenizer(*more, *named.values(), extra_special_tokens=named)


def ids_of(tokenizer: Any, *tokens: str) -> dict[str, int]:
    """Return the ids of tokens by the keys that configs have for them."""
    return {f"{token}_id": getattr(tokenizer, f"{token}_id") for token in tokens}


def template(image: str, *, start: str = "") -> str:
    """Return a chat template that writes `image` in the place of a picture, and `start` before all."""
    return start + IMAGE_TEXT_TEMPLATE.replace("IMAGE", image)


def built(model_type: str, processor: Any, **settings: Any) -> Tiny:
    """Return the random model of a config with these settings, and its processor."""
    config = AutoConfig.for_model(model_type, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomised(AutoModelForImageTextToText.from_config(config)), processor
