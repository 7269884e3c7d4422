"""The responses of a run that are trained on: how long they are, how they ended, what was dropped."""

from dataclasses import dataclass

import numpy as np

from vlm_distill.data.lengths import StoredLengths, read_lengths
from vlm_distill.reporting.facts import Run, Values
from vlm_distill.shards import MANIFEST


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseSet:
    """The responses of one author in one round; `counts` are empty until all prompts are answered."""

    label: str
    counts: Values
    stored: StoredLengths

    @property
    def num_stopped(self) -> int:
        return self.stored.finishes.count("stop")

    @property
    def num_cut(self) -> int:
        return self.stored.finishes.count("length")

    @property
    def num_unanswered(self) -> int | None:
        """Prompts without any stored response; a stage that needs this author leaves them out."""
        return self.counts["prompts"] - self.stored.num_prompts if self.counts else None

    def percentile(self, share: float) -> str:
        lengths = self.stored.lengths
        return f"{np.percentile(lengths, 100 * share):.0f}" if lengths else "-"

    @property
    def mean(self) -> str:
        return f"{np.mean(self.stored.lengths):.1f}" if self.stored.lengths else "-"


def read_response_sets(run: Run) -> list[ResponseSet]:
    """Return the responses that are stored, complete or not, in the order of the plan."""
    return [
        ResponseSet(label=one.label, counts=one.counts, stored=read_lengths(one.folder))
        for one in run.generations
        if (one.folder / MANIFEST).exists()
    ]
