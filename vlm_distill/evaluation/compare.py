"""Two models on the same questions: paired differences of scores, and how often their answers agree."""

from collections.abc import Mapping, Sequence

from vlm_distill.errors import DataError
from vlm_distill.evaluation.results import Sample, TaskResult
from vlm_distill.evaluation.statistics import Estimate, PairedDifference, clustered_mean, paired_difference
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
    pairs = _pair(a.samples, b.samples, where=f"compare {a.task}")
    return {
        metric: {subset: _difference(pairs, metric, subset) for subset in subsets}
        for metric, subsets in a.metrics.items()
    }


def answer_agreement(a: Sequence[Sample], b: Sequence[Sample]) -> Estimate:
    """Return the share of questions that both models answer with the same text, but for case and outer space.

    Raises:
        DataError: the samples are of different questions.
    """
    pairs = _pair(a, b, where="answer agreement")
    equal = [float(same_answer(first.prediction, second.prediction)) for first, second in pairs]
    return clustered_mean(equal, [first.cluster for first, _ in pairs])


def same_answer(a: str, b: str) -> bool:
    """Return whether two answers are one; case and outer white space do not matter."""
    return a.strip().lower() == b.strip().lower()


def _pair(a: Sequence[Sample], b: Sequence[Sample], *, where: str) -> list[tuple[Sample, Sample]]:
    others: Mapping[str, Sample] = {sample.id: sample for sample in b}
    unpaired = sorted({sample.id for sample in a} ^ set(others))
    if unpaired:
        raise DataError(
            f"{where}: expected the same questions, got {len(unpaired)} that only one model answered, "
            f"the first {unpaired[0]!r}; evaluate both with the same limit"
        )
    pairs = [(sample, others[sample.id]) for sample in a]
    for first, second in pairs:
        if first.document_hash != second.document_hash:
            raise DataError(
                f"{where}: question {first.id!r} has other images or references in the second result; "
                "evaluate both models again"
            )
    return pairs


def _difference(pairs: Sequence[tuple[Sample, Sample]], metric: str, subset: str) -> PairedDifference:
    members = [(first, second) for first, second in pairs if subset == ALL or subset in first.subsets]
    return paired_difference(
        [first.scores[metric] or 0.0 for first, _ in members],
        [second.scores[metric] or 0.0 for _, second in members],
        [first.cluster for first, _ in members],
    )
