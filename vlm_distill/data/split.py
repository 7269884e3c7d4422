"""Splitting examples into a training and a held-out part by a hash: no draw depends on other draws."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from vlm_distill.config import Record
from vlm_distill.files import hash_json
from vlm_distill.records import Example


class Split(Record):
    """`held_out` is a fraction of the images or examples; it is met on average, each being drawn by its hash.

    By `image`, examples that share an image, even through others, are on one side, and examples without
    images are drawn by their prompt. By `id`, an image may be on both sides.
    """

    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    by: Literal["image", "id"] = "image"
    seed: int = 0


def split_examples(examples: Sequence[Example], split: Split) -> tuple[list[Example], list[Example]]:
    """Return the training and the held-out examples, each in the order in which they came."""
    keys = _image_keys(examples) if split.by == "image" else [example.id for example in examples]
    is_held_out = [_fraction(split.seed, key) < split.held_out for key in keys]
    train = [example for example, held in zip(examples, is_held_out, strict=True) if not held]
    held_out = [example for example, held in zip(examples, is_held_out, strict=True) if held]
    return train, held_out


def _fraction(seed: int, key: str) -> float:
    """Return a number in [0, 1) that is uniform over keys."""
    return int(hash_json([seed, key])[:13], 16) / 16**13


def _image_keys(examples: Sequence[Example]) -> list[str]:
    """Return per example the smallest image hash that it is connected to, without images the prompt hash."""
    parent: dict[str, str] = {}

    def root(image: str) -> str:
        parent.setdefault(image, image)
        while parent[image] != image:
            parent[image] = parent[parent[image]]
            image = parent[image]
        return image

    for example in examples:
        for image in example.images:
            first, second = root(example.images[0]), root(image)
            parent[max(first, second)] = min(first, second)
    return [root(example.images[0]) if example.images else example.prompt_hash() for example in examples]
