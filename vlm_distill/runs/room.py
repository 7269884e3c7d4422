"""Which items a stage has room for: prompt and responses within the positions of all their readers."""

from collections.abc import Sequence

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.batches import TrainItem
from vlm_distill.errors import DataError
from vlm_distill.models.positions import max_positions
from vlm_distill.runs.context import Context


def with_room(
    context: Context,
    items: Sequence[TrainItem],
    *,
    readers: Sequence[LoadedModel],
    new_tokens: int,
    label: str,
) -> list[TrainItem]:
    """Return the items that fit all `readers`, and say how many do not.

    `new_tokens` is the length of responses that are written only during the stage, 0 where there are none.

    Raises:
        DataError: none of them fits.
    """
    fitting = list(items)
    for loaded in readers:
        room = max_positions(loaded)
        if room is None or not fitting:
            continue
        lengths = context.prompt_lengths(loaded)
        kept = [one for one in fitting if lengths[one.example.id] + _longest(one, new_tokens) <= room]
        if len(kept) < len(fitting):
            context.log(
                f"{label}: {len(fitting) - len(kept):,} of {len(items):,} prompts are too long with their "
                f"responses for the {room:,} positions of {loaded.path} and left out"
            )
        fitting = kept
    if items and not fitting:
        raise DataError(
            f"{label}: none of the {len(items):,} prompts fits into the positions of "
            f"{' and '.join(loaded.path for loaded in readers)} with its responses; lower max_new_tokens, "
            "shorten the prompts, or choose models with more positions"
        )
    return fitting


def _longest(item: TrainItem, new_tokens: int) -> int:
    return max([new_tokens, *(len(one.token_ids) for one in item.responses)])
