"""MiniCPM-V: the patches of all pictures of a prompt lie side by side along the last axis of its pixels.

A batch has them as rows, which can be counted by prompt, and the model gets them as it reads them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float, Int, Shaped
from PIL import Image
from torch import Tensor, nn
from transformers import Cache

from vlm_distill.adapters.adapter import PIXELS, Adapter
from vlm_distill.adapters.body import hidden_states
from vlm_distill.adapters.chat import encode_image_text, pad_id
from vlm_distill.adapters.padding import pad_prompts
from vlm_distill.batches import PromptBatch
from vlm_distill.records import Example


def encode_patches(
    processor: Any, examples: Sequence[Example], images: Sequence[Sequence[Image.Image]]
) -> PromptBatch:
    """Return the prompts of chat.py with one row of pixels for each patch."""
    encodings = []
    for example, pictures in zip(examples, images, strict=True):
        alone = encode_image_text(processor, [example], [pictures])
        encoding = {"input_ids": alone.input_ids, **alone.extras, **alone.token_extras}
        if pictures:
            [pixels] = alone.extras[PIXELS]
            # From [colour, height, patch * width] to [patch, colour, height, width]; patches are square.
            encoding[PIXELS] = pixels.unflatten(-1, (-1, pixels.shape[1])).permute(2, 0, 1, 3)
        encodings.append(encoding)
    return pad_prompts(encodings, pad_id=pad_id(processor.tokenizer))


def side_by_side(
    model: nn.Module,
    tokens: Int[Tensor, "b t"] | Float[Tensor, "b t width"],
    attention_mask: Int[Tensor, "b seen"] | Shaped[Tensor, "b 1 t t"],
    position_ids: Int[Tensor, "*axes b t"],
    extras: Mapping[str, Tensor],
    cache: Cache | None,
) -> Float[Tensor, "b t width"]:
    """Return the hidden states of body.py, whose model gets all patches in one row."""
    pixels = extras.get(PIXELS)
    if pixels is not None and len(pixels):
        # From [patch, colour, height, width] to [1, colour, height, patch * width].
        extras = {**extras, PIXELS: pixels.permute(1, 2, 0, 3).flatten(2).unsqueeze(0)}
    return hidden_states(model, tokens, attention_mask, position_ids, extras, cache)


MINICPM_V = Adapter(
    name="minicpm_v",
    model_types=("minicpmv4_6", "minicpmv4_7", "minicpm_ocr"),
    encode=encode_patches,
    backbone=side_by_side,
)
