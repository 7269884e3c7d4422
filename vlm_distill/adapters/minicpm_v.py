"""MiniCPM-V: the patches of all pictures of a prompt lie side by side along the last axis of its pixels.

A batch has them as rows, which can be counted by prompt, and the model gets them as it reads them.
"""

from collections.abc import Mapping
from functools import partial

from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import Cache

from vlm_distill.adapters.adapter import PIXELS, Adapter
from vlm_distill.adapters.body import hidden_states
from vlm_distill.adapters.chat import encode_image_text
from vlm_distill.adapters.padding import Encoding


def patches_as_rows(encoding: Encoding) -> Encoding:
    """Return an encoded prompt with one row of pixels for each patch."""
    if PIXELS not in encoding:
        return encoding
    [pixels] = encoding[PIXELS]
    # From [colour, height, patch * width] to [patch, colour, height, width]; patches are square.
    return {**encoding, PIXELS: pixels.unflatten(-1, (-1, pixels.shape[1])).permute(2, 0, 1, 3)}


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
    encode=partial(encode_image_text, with_rows=patches_as_rows),
    backbone=side_by_side,
)
