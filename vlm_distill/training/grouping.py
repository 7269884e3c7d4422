"""An order of training in which a step holds prompts of similar lengths, and so little padding.

The usual scheme of megabatches: shuffled items are sorted inside stretches of some steps, and the steps are
shuffled. Deterministic, and the same for every number of processes.
"""

import math
from collections.abc import Sequence

import torch

# Steps of one stretch. On GSM8K, 16 leave half as much padding again and a whole epoch a third less, which
# would put the same prompts together in every epoch.
MEGABATCH_STEPS = 64


def group_steps(
    order: Sequence[int],
    lengths: Sequence[tuple[int, int]],
    *,
    batch_size: int,
    generator: torch.Generator,
) -> list[int]:
    """Return a shuffled `order` of whole steps with similar lengths inside each step, the steps shuffled.

    `lengths` are (prompt, longest response) of every item. Prompts and responses are padded separately, so
    that a stretch is cut by prompt length into strips and each strip by response length into steps. Equal
    lengths stay in the order that they come in.
    """
    assert len(order) % batch_size == 0, (len(order), batch_size)
    stretch = MEGABATCH_STEPS * batch_size
    steps: list[list[int]] = []
    for start in range(0, len(order), stretch):
        items = sorted(order[start : start + stretch], key=lambda i: lengths[i][0])
        num_steps = len(items) // batch_size
        strip = math.ceil(num_steps / max(1, round(math.sqrt(num_steps)))) * batch_size
        for left in range(0, len(items), strip):
            column = sorted(items[left : left + strip], key=lambda i: lengths[i][1])
            steps += [column[top : top + batch_size] for top in range(0, len(column), batch_size)]
    places = torch.randperm(len(steps), generator=generator).tolist()
    return [item for place in places for item in steps[place]]
