"""Prompts of several shapes as one batch: values per token stand beside their tokens, pixels below zeros."""

import torch

from vlm_distill.adapters.padding import pad_prompts


def prompt(length: int, *, size: int = 0, kind: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.arange(1, length + 1)[None]
    made = {"input_ids": ids, "token_type_ids": torch.full_like(ids, kind)}
    # [image, channel, height, width] and [1, token, image]
    images = {"pixel_values": torch.ones(1, 1, size, 2), "cross_mask": torch.ones(1, length, size).int()}
    return {**made, **images} if size else made


def test_a_value_per_token_stands_beside_its_token_and_is_zero_on_padding() -> None:
    batch = pad_prompts([prompt(2, kind=3), prompt(4, kind=5)], pad_id=9)
    assert batch.input_ids.tolist() == [[9, 9, 1, 2], [1, 2, 3, 4]]
    assert batch.token_extras["token_type_ids"].tolist() == [[0, 0, 3, 3], [5, 5, 5, 5]]
    assert batch.extras == {}


def test_values_of_several_axes_are_padded_behind_on_all_but_that_of_tokens() -> None:
    batch = pad_prompts([prompt(2, size=3), prompt(4), prompt(3, size=1)], pad_id=9)
    mask = batch.token_extras["cross_mask"]
    assert mask.shape == (3, 4, 3)
    assert mask.sum(dim=2).tolist() == [[0, 0, 3, 3], [0, 0, 0, 0], [0, 1, 1, 1]]
    assert mask[2, -1].tolist() == [1, 0, 0]


def test_pixels_of_several_sizes_are_padded_with_zeros_and_counted_at_their_prompt() -> None:
    batch = pad_prompts([prompt(2, size=3), prompt(4), prompt(3, size=1)], pad_id=9)
    pixels = batch.extras["pixel_values"]
    assert batch.extra_counts == {"pixel_values": (1, 0, 1)}
    assert pixels.shape == (2, 1, 3, 2)
    assert pixels[1, 0].tolist() == [[1, 1], [0, 0], [0, 0]]


def test_a_selection_takes_the_values_of_its_prompts_along() -> None:
    batch = pad_prompts([prompt(2, kind=3), prompt(4, kind=5)], pad_id=9).select(torch.tensor([1, 1, 0]))
    assert batch.token_extras["token_type_ids"][:, -1].tolist() == [5, 5, 3]
