"""Weighted mixtures of sources: deterministic, without repeats, evenly interleaved."""

from collections.abc import Mapping, Sequence

from vlm_distill.data.draw import draw
from vlm_distill.errors import DataError
from vlm_distill.records import Example


def mix(
    groups: Mapping[str, Sequence[Example]], weights: Mapping[str, float] | None, *, seed: int
) -> list[Example]:
    """Return the examples of all groups, each group spread evenly over the result and in its own order.

    With weights (one per group) each group has its relative share of the result. No example is repeated,
    since ids are unique: the group that is scarcest for its weight comes whole and bounds the others, of
    which a part is drawn that depends on `seed` and ids only. Without weights everything comes.

    Raises:
        DataError: a group has a weight but no examples.
    """
    chosen = dict(groups)
    if weights is not None:
        empty = [name for name, group in groups.items() if not group]
        if empty:
            raise DataError(
                f"source {empty[0]!r} has a weight but no examples left; drop it or loosen its filters"
            )
        scale = min(len(group) / weights[name] for name, group in groups.items())
        # The small constant keeps 3 * (1 / 3) from being rounded down to 0.
        sizes = {name: int(scale * weights[name] + 1e-9) for name in groups}
        chosen = {name: draw(group, sizes[name], seed=seed) for name, group in groups.items()}
    placed = [
        ((position + 0.5) / len(group), order, example)
        for order, group in enumerate(chosen.values())
        for position, example in enumerate(group)
    ]
    placed.sort(key=lambda item: item[:2])
    return [example for _, _, example in placed]
