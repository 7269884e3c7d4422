"""Perception LM: pictures as tiles, of which a prompt may have another number than the next.

Its model counts every tile and has no size to tell padding by, so that a row of pixels has to be a tile.
"""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from vlm_distill.adapters.adapter import PIXELS, Adapter
from vlm_distill.adapters.chat import encode_image_text, pad_id
from vlm_distill.adapters.padding import pad_prompts
from vlm_distill.batches import PromptBatch
from vlm_distill.records import Example


def encode_tiles(
    processor: Any, examples: Sequence[Example], images: Sequence[Sequence[Image.Image]]
) -> PromptBatch:
    """Return the prompts of chat.py with one row of pixels for each tile."""
    encodings = []
    for example, pictures in zip(examples, images, strict=True):
        alone = encode_image_text(processor, [example], [pictures])
        # From [image, tile, ...] to [image * tile, 1, ...], which the model reads in the same order.
        rows = {PIXELS: alone.extras[PIXELS].flatten(0, 1).unsqueeze(1)} if pictures else {}
        encodings.append({"input_ids": alone.input_ids, **rows})
    return pad_prompts(encodings, pad_id=pad_id(processor.tokenizer))


PERCEPTION_LM = Adapter(name="perception_lm", model_types=("perception_lm",), encode=encode_tiles)
