"""Perception LM: pictures as tiles, of which a prompt may have another number than the next.

Its model counts every tile and has no size to tell padding by, so that a row of pixels has to be a tile.
"""

from functools import partial

from vlm_distill.adapters.adapter import PIXELS, Adapter
from vlm_distill.adapters.chat import encode_image_text
from vlm_distill.adapters.padding import Encoding


def tiles_as_rows(encoding: Encoding) -> Encoding:
    """Return an encoded prompt with one row of pixels for each tile."""
    if PIXELS not in encoding:
        return encoding
    # From [image, tile, ...] to [image * tile, 1, ...], which the model reads in the same order.
    return {**encoding, PIXELS: encoding[PIXELS].flatten(0, 1).unsqueeze(1)}


PERCEPTION_LM = Adapter(
    name="perception_lm",
    model_types=("perception_lm",),
    encode=partial(encode_image_text, with_rows=tiles_as_rows),
)
