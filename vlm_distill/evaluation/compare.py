"""Two models on the same questions: paired differences of scores, and whether answers are the same."""

from collections.abc import Sequence

from vlm_distill.errors import DataError
from vlm_distill.evaluation.results import Sample, TaskResult
from vlm_distill.evaluation.statistics import PairedDifference, paired_difference
from vlm_distill.evaluation.task import ALL


def compare(a: TaskResult, b: TaskResult) -> dict[str, dict[str, PairedDifference]]:
    """Return `b` minus `a` for every metric and subset, paired by question.

    Also the image-shuffle drop: `compare(shuffled, normal)`.

    Raises:
        DataError: the results are of different tasks, questions, references or scorers.
    """
    if (a.task, a.version) != (b.task, b.version):
        raise DataError(
            f"compare: expected one task, got {a.task} version {a.version} and {b.task} version {b.version}"
        )
    if a.scorers != b.scorers:
        raise DataError(
            f"compare: {a.task} was scored with different metrics; score the older predictions again"
        )
    pairs = _pairs(a, b)
    return {
        metric: {subset: _difference(pairs, metric, subset) for subset in subsets}
        for metric, subsets in a.metrics.items()
    }


def same_answer(a: str, b: str) -> bool:
    """Return whether two answers are one; case and outer white space do not matter."""
    return a.strip().lower() == b.strip().lower()


def _pairs(a: TaskResult, b: TaskResult) -> list[tuple[Sample, Sample]]:
    others = {sample.id: sample for sample in b.samples}
    unpaired = sorted({sample.id for sample in a.samples} ^ set(others))
    if unpaired:
        raise DataError(
            f"compare {a.task}: expected the same questions, got {len(unpaired)} that only one model "
            f"answered, the first {unpaired[0]!r}; evaluate both with the same limit"
        )
    pairs = [(sample, others[sample.id]) for sample in a.samples]
    for first, second in pairs:
        if first.document_hash != second.document_hash:
            raise DataError(
                f"compare {a.task}: question {first.id!r} has other images or references in the second "
                "result; evaluate both models again"
            )
    return pairs


def _difference(pairs: Sequence[tuple[Sample, Sample]], metric: str, subset: str) -> PairedDifference:
    members = [(first, second) for first, second in pairs if subset == ALL or subset in first.subsets]
    return paired_difference(
        [first.scores[metric] or 0.0 for first, _ in members],
        [second.scores[metric] or 0.0 for _, second in members],
        [first.cluster for first, _ in members],
    )
