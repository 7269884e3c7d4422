"""Drawing some of the examples by the hashes of their ids: no dependence on their order or on one another."""

from collections.abc import Sequence

from vlm_distill.files import hash_json
from vlm_distill.records import Example


def draw(examples: Sequence[Example], size: int, *, seed: int) -> list[Example]:
    """Return `size` of the examples, or all where there are fewer, in their old order.

    With one seed a smaller draw is a subset of a larger one.
    """
    ranked = sorted(examples, key=lambda example: hash_json([seed, example.id]))
    drawn = {example.id for example in ranked[:size]}
    return [example for example in examples if example.id in drawn]
