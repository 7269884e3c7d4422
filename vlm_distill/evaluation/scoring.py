"""From predictions to numbers: scores of samples, means with intervals, counts. No model and no engine."""

from collections.abc import Sequence
from dataclasses import replace

from vlm_distill.evaluation.results import NO_RESPONSE, Provenance, Sample, TaskResult
from vlm_distill.evaluation.statistics import Estimate, clustered_mean
from vlm_distill.evaluation.task import ALL, Task


def score(task: Task, samples: Sequence[Sample], provenance: Provenance) -> TaskResult:
    """Return the result of `task` on `samples`; their old scores and subsets are replaced."""
    scored = tuple(
        replace(
            sample,
            scores={metric.name: metric(sample.prediction, sample.references) for metric in task.metrics},
            subsets=task.subsets_of(sample.references),
        )
        for sample in samples
    )
    settings = task.model_dump(mode="json")["metrics"]
    return TaskResult(
        task=task.name,
        version=task.version,
        task_hash=task.hash(),
        verified=task.verified,
        scorers={metric.name: one for metric, one in zip(task.metrics, settings, strict=True)},
        metrics={metric.name: _estimates(task, scored, metric.name) for metric in task.metrics},
        counts=_counts(task, scored),
        provenance=provenance,
        samples=scored,
    )


def _estimates(task: Task, samples: Sequence[Sample], metric: str) -> dict[str, Estimate]:
    estimates = {}
    for subset in (ALL, *task.subsets):
        members = [sample for sample in samples if subset == ALL or subset in sample.subsets]
        # An answer that could not be parsed (None) is wrong; how many there are stands in the counts.
        values = [sample.scores[metric] or 0.0 for sample in members]
        estimates[subset] = clustered_mean(values, [sample.cluster for sample in members])
    return estimates


def _counts(task: Task, samples: Sequence[Sample]) -> dict[str, int]:
    unparsed = {
        f"unparsed_{metric.name}": sum(sample.scores[metric.name] is None for sample in samples)
        for metric in task.metrics
    }
    return {
        "examples": len(samples),
        "clusters": len({sample.cluster for sample in samples}),
        "empty": sum(not sample.prediction.strip() for sample in samples),
        "truncated": sum(sample.finish == "length" for sample in samples),
        "no_response": sum(sample.finish == NO_RESPONSE for sample in samples),
        **unparsed,
    }
