"""Which curves a report shows: everything numeric that the stages have logged, on one axis of steps.

Metrics that belong together share a chart. A metric that is not known here gets a chart of its own, so that
new objectives need no change.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vlm_distill.evaluation.table import words
from vlm_distill.reporting.facts import Run
from vlm_distill.reporting.scores import Scores
from vlm_distill.runs.plan import ROUNDS, STUDENT, WARMUP

# What a row says about the position of a stage, not about how it goes.
POSITION = ("step", "steps", "round", "tokens", "fraction")
# More points than pixels show nothing more.
MAX_POINTS = 240
AGREEMENT = "held_out_kl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What a chart shows and in which unit; `may_be_log` where factors matter more than differences."""

    title: str
    unit: str = ""
    may_be_log: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One metric. `segments` are its points (step, value) in each stage; only these are joined by lines."""

    label: str
    segments: list[list[tuple[float, float]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """The series of one subject; `num_left_out` values are not finite, long logs are `is_averaged`."""

    subject: Subject
    series: list[Series]
    num_left_out: int = 0
    is_averaged: bool = False


SUBJECTS = {
    "loss": Subject(title="Training loss", unit="nats", may_be_log=True),
    AGREEMENT: Subject(title="KL to the teacher, held out", unit="nats per response token", may_be_log=True),
    "terms": Subject(title="Terms of the loss", unit="nats per token", may_be_log=True),
    "alpha": Subject(title="Skew alpha"),
    "beta": Subject(title="Weight beta of the student's term"),
    "gap": Subject(title="Likelihood gap", unit="token probability, own author minus the other model"),
    "taid_t": Subject(title="TAID t", unit="share of the teacher in the target"),
    "held_out_top1": Subject(title="Same first choice as the teacher, held out", unit="share of tokens"),
    "learning_rate": Subject(title="Learning rate"),
    "grad_norm": Subject(title="Gradient norm before clipping"),
    "tokens_per_second": Subject(title="Speed", unit="response tokens per second"),
    "padding": Subject(title="Padding in training", unit="share of positions"),
}
AUTHORS = ("teacher", "student", "reference")


def read_charts(run: Run, scores: Scores) -> list[Chart]:
    """Return a chart per subject, the known ones first."""
    values: dict[str, dict[str, list[list[tuple[float, float]]]]] = {}
    left_out: dict[str, int] = {}
    for one in run.trainings:
        for name in dict.fromkeys(name for row in one.rows for name in row):
            subject, label = _place(name, one.step.titles)
            points = one.points(name)
            finite = [point for point in points if math.isfinite(point[1])]
            left_out[subject] = left_out.get(subject, 0) + len(points) - len(finite)
            if finite and name not in POSITION:
                values.setdefault(subject, {}).setdefault(label, []).append(finite)
    found = _after_stages(run, scores)
    if found:
        values.setdefault(AGREEMENT, {})["after a stage"] = found
    order = [*SUBJECTS, *sorted(values.keys() - SUBJECTS.keys())]
    return [_chart(name, values[name], left_out.get(name, 0)) for name in order if name in values]


def _place(name: str, titles: Mapping[str, str]) -> tuple[str, str]:
    """Return the subject of a metric and the label of its curve there; `titles` are those of terms."""
    if name in titles:
        return "terms", titles[name]
    if name == AGREEMENT:
        return name, "during training"
    stem, _, author = name.rpartition("_")
    if author in AUTHORS and stem:
        return stem, f"{author}'s responses"
    return name, words(name)


def _after_stages(run: Run, scores: Scores) -> list[list[tuple[float, float]]]:
    """Return the KL that evaluations found: the rounds joined from the start on, each control by itself."""
    ends = {one.step.stage: one.end for one in run.trainings if one.has_begun}
    if not ends:
        return []
    ends[run.start.stage] = 0
    joined: list[tuple[float, float]] = []
    alone: list[tuple[float, float]] = []
    for row in scores.rows:
        token_kl = row.values.get("token_kl")
        if token_kl is not None and math.isfinite(token_kl) and row.step.stage in ends:
            is_joined = row.step.track in (STUDENT, WARMUP, ROUNDS)
            (joined if is_joined else alone).append((float(ends[row.step.stage]), token_kl))
    return [segment for segment in (joined, *([point] for point in alone)) if segment]


def _chart(name: str, series: dict[str, list[list[tuple[float, float]]]], num_left_out: int) -> Chart:
    is_long = any(len(segment) > MAX_POINTS for segments in series.values() for segment in segments)
    return Chart(
        subject=SUBJECTS.get(name, Subject(title=words(name).capitalize())),
        series=[
            Series(label=label, segments=[_thin(segment) for segment in segments])
            for label, segments in series.items()
        ],
        num_left_out=num_left_out,
        is_averaged=is_long,
    )


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most `MAX_POINTS` points, each the mean of neighbours."""
    size = math.ceil(len(points) / MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
