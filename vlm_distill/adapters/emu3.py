"""Emu3: a codebook makes tokens of a picture, and sees what the processor padded it with.

That is the size of the largest picture of a prompt. In a batch it would be that of all prompts, so each
picture is cut back to what it is beside those of its own prompt.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
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

PADDED = "padded_sizes"
"""Height and width that the pictures of a prompt have together, one row per picture."""


def encode_with_sizes(
    processor: Any, examples: Sequence[Example], images: Sequence[Sequence[Image.Image]]
) -> PromptBatch:
    """Return the prompts of chat.py with the size that every picture is padded to in its prompt."""
    encodings = []
    for example, pictures in zip(examples, images, strict=True):
        alone = encode_image_text(processor, [example], [pictures])
        encoding = {"input_ids": alone.input_ids, **alone.extras, **alone.token_extras}
        if pictures:
            pixels = encoding[PIXELS]
            encoding[PADDED] = torch.tensor(pixels.shape[-2:]).expand(len(pixels), 2)
        encodings.append(encoding)
    return pad_prompts(encodings, pad_id=pad_id(processor.tokenizer))


def coded_states(
    model: nn.Module,
    tokens: Int[Tensor, "b t"] | Float[Tensor, "b t width"],
    attention_mask: Int[Tensor, "b seen"] | Shaped[Tensor, "b 1 t t"],
    position_ids: Int[Tensor, "*axes b t"],
    extras: Mapping[str, Tensor],
    cache: Cache | None,
) -> Float[Tensor, "b t width"]:
    """Return the hidden states of body.py, whose pictures enter as embeddings of their codes."""
    # A selection of prompts without pictures still carries their empty tensors.
    if len(extras.get(PIXELS, ())):
        base: Any = model.base_model
        places = (tokens == base.vocabulary_mapping.image_token_id).unsqueeze(-1)
        tokens = base.get_input_embeddings()(tokens).masked_scatter(places, _embeddings(base, extras))
    return hidden_states(model, tokens, attention_mask, position_ids, {}, cache)


def _embeddings(base: Any, extras: Mapping[str, Tensor]) -> Float[Tensor, "token width"]:
    """Return the embeddings of all pictures, one behind the other."""
    found: dict[int, Tensor] = {}
    for size in extras[PADDED].unique(dim=0):
        rows = (extras[PADDED] == size).all(dim=1).nonzero()[:, 0]
        height, width = size.tolist()
        pixels = extras[PIXELS][rows, :, :height, :width]
        features = base.get_image_features(pixels, extras["image_sizes"][rows]).pooler_output
        found |= dict(zip(rows.tolist(), features, strict=True))
    return torch.cat([found[row] for row in sorted(found)])


EMU3 = Adapter(name="emu3", model_types=("emu3",), encode=encode_with_sizes, backbone=coded_states)
