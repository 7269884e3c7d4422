"""Prompts that were encoded one by one, as one batch: what has a value per token, and what belongs to images.

Tensors of images whose sizes differ from prompt to prompt are padded with zeros to the largest, as processors
pad them within a call: beside them stand sizes or masks, or a model leaves out what is all zero. That it does
is shown on the model (conformance/).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vlm_distill.batches import PromptBatch

Encoding = Mapping[str, Tensor]


def pad_prompts(encodings: Sequence[Encoding], *, pad_id: int) -> PromptBatch:
    """Return prompts that were encoded one by one (batch axis 1) as one left-padded batch."""
    width = max(encoding["input_ids"].shape[1] for encoding in encodings)
    # From one [1, token] each to [prompt, width].
    input_ids = torch.full((len(encodings), width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(encodings), width), dtype=torch.long)
    for row, encoding in enumerate(encodings):
        ids = encoding["input_ids"][0]
        input_ids[row, width - len(ids) :] = ids
        attention_mask[row, width - len(ids) :] = 1
    names = sorted({name for encoding in encodings for name in encoding} - {"input_ids", "attention_mask"})
    token_extras = {
        name: _pad_tokens([e.get(name) for e in encodings], width)
        for name in names
        if all(_is_per_token(e, name) for e in encodings if name in e)
    }
    rows = {name: [e[name] for e in encodings if name in e] for name in names if name not in token_extras}
    return PromptBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        extras={name: torch.cat(_of_one_shape(some)) for name, some in rows.items()},
        extra_counts={name: tuple(e[name].shape[0] if name in e else 0 for e in encodings) for name in rows},
        token_extras=token_extras,
    )


def _is_per_token(encoding: Encoding, name: str) -> bool:
    """Return whether a tensor has a whole number for every token of the prompt, as pixels do not."""
    value = encoding[name]
    return not value.is_floating_point() and value.shape[:2] == encoding["input_ids"].shape


def _pad_tokens(values: Sequence[Tensor | None], width: int) -> Tensor:
    """Return one left-padded row a prompt, [prompt, width, ...]; a prompt without a value has zeros."""
    given = _of_one_shape([value for value in values if value is not None], first=2)
    padded = given[0].new_zeros((len(values), width, *given[0].shape[2:]))
    left = iter(given)
    for row, value in enumerate(values):
        if value is not None:
            padded[row, width - value.shape[1] :] = next(left)[0]
    return padded


def _of_one_shape(values: Sequence[Tensor], *, first: int = 1) -> list[Tensor]:
    """Return the tensors padded behind, with zeros, to the largest size of each axis from the `first` on."""
    sizes = [max(some) for some in zip(*(value.shape[first:] for value in values), strict=True)]
    padded = []
    for value in values:
        missing = [size - own for size, own in zip(sizes, value.shape[first:], strict=True)]
        # torch counts from the last axis back, before and behind each.
        sides = [side for count in reversed(missing) for side in (0, count)]
        padded.append(torch.nn.functional.pad(value, sides) if any(missing) else value)
    return padded
