"""What a run is and how far it is: one reading of its folder, step by step of its plan.

Page, model card and export are made from this, of a finished run or half way. Only what is large is read
elsewhere: lengths of responses (response_sets.py) and answers (gallery.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlm_distill.data.dataset import Manifest, read_manifest
from vlm_distill.errors import DataError
from vlm_distill.evaluation.results import Numbers, read_numbers
from vlm_distill.generation.work import find_counts
from vlm_distill.runs.evaluator import HELD_OUT_ANSWERS, find_compared
from vlm_distill.runs.folder import CONFIG, read_config, require_plan
from vlm_distill.runs.plan import HELD_OUT, ROUNDS, STUDENT, WARMUP, Step, read_plan
from vlm_distill.runs.provenance import Provenance, find_provenance
from vlm_distill.runs.summary import Summary, find_summary
from vlm_distill.training.metrics import is_number, read_log
from vlm_distill.training.train import Trained, find_trained

Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """The training of one student: what it has logged, and its `result`, None until it is over.

    Each of the `rows` has `step`; `num_unreadable` lines of the log were cut short by a kill. `start` and
    `end` lie on an axis of optimiser steps that runs through all trainings; `start` is the last step before.
    """

    step: Step
    folder: Path
    result: Trained | None
    rows: Sequence[Values]
    num_unreadable: int
    start: int

    @property
    def label(self) -> str:
        return self.step.label

    @property
    def short_labels(self) -> list[str]:
        """The label, shorter from one to the next: 'round 2', 'r2', '2', or 'warm-up', 'w'."""
        first, number = self.label[0], str(self.step.round)
        is_numbered = self.step.track == ROUNDS or self.step.num_rounds > 1
        return [self.label, first + number, number] if is_numbered else [self.label, first]

    @property
    def is_trained(self) -> bool:
        return self.result is not None

    @property
    def end(self) -> int:
        steps = [*(row["step"] for row in self.rows), self.result.steps if self.result else 0]
        return self.start + int(max(steps))

    @property
    def has_begun(self) -> bool:
        return self.end > self.start

    def points(self, name: str) -> list[tuple[float, float]]:
        """Return what is logged under a name, each value behind its place on the axis."""
        found = [row for row in self.rows if is_number(row.get(name))]
        return [(float(self.start + row["step"]), float(row[name])) for row in found]

    def values(self, name: str) -> list[float]:
        return [value for _, value in self.points(name)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What was measured of one model: a result per task, and `values`, keyed as MEASURES.

    `agreement` is what was counted with them. `answers` is where its answers to held-out prompts are,
    `answer_counts` what became of these prompts.
    """

    step: Step
    results: Sequence[Numbers]
    values: Values
    agreement: Values
    answers: Path
    answer_counts: Values

    @property
    def label(self) -> str:
        return self.step.label

    @property
    def is_done(self) -> bool:
        return bool(self.results or self.values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """Responses of one author in one round; `counts` are empty until all prompts are answered."""

    step: Step
    folder: Path
    counts: Values

    @property
    def label(self) -> str:
        author: str = self.step.settings["author"]
        if author != "student":
            return author
        own = "" if self.step.track in (WARMUP, ROUNDS) else f"{self.step.track} "
        return f"{own}{author} round {self.step.round}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run folder. Its steps are those of the config in their order, then others that have left results.

    `data` is the manifest of the prepared data; it is None where there is none yet, as is `provenance`; the
    `summary` is empty before the end. `generations` are the responses that are trained on, `held_out` the
    teacher's answers to held-out prompts, None where nothing is compared with it.
    """

    folder: Path
    config: Values
    provenance: Provenance | None
    summary: Summary
    data: Manifest | None
    steps: Sequence[Step]
    trainings: Sequence[Training]
    evaluations: Sequence[Evaluation]
    generations: Sequence[Generation]
    held_out: Generation | None

    def setting(self, path: str) -> Any:
        """Return the value at a dotted path of the config, None where there is none."""
        value: Any = self.config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.folder.name)

    @property
    def start(self) -> Step:
        """The step that makes the student before any training."""
        return next(step for step in self.steps if step.track == STUDENT and step.kind == "prepare")

    def track(self, name: str) -> list[Training]:
        """Return the trainings of a track that the config asks for."""
        return [one for one in self.trainings if one.step.track == name and one.step.is_planned]

    def path_to(self, training: Training) -> list[Training]:
        """Return the trainings that led to a student, in their order, its own being the last."""
        trained = {one.step.stage: one for one in self.trainings if one.is_trained}
        path = [training]
        while path[0].step.starts_from in trained:
            path.insert(0, trained[path[0].step.starts_from])
        return path


def open_run(folder: Path) -> Run:
    """Return what is in a run folder.

    Raises:
        DataError: the folder is no run folder or that of an earlier version, or a file in it is damaged.
    """
    if not (folder / CONFIG).exists():
        raise DataError(f"{folder}: expected the folder of a run, found no config.yaml in it")
    require_plan(folder)
    steps = read_plan(folder)
    generations = [_generation(folder / step.folder, step) for step in steps if step.kind == "generate"]
    return Run(
        folder=folder,
        config=read_config(folder),
        provenance=find_provenance(folder),
        summary=find_summary(folder) or Summary(rows=(), comparisons=()),
        data=read_manifest(folder / "data"),
        steps=steps,
        trainings=list(_trainings(folder, [step for step in steps if step.kind == "train"])),
        evaluations=[_evaluation(folder / step.folder, step) for step in steps if step.kind == "evaluate"],
        generations=[one for one in generations if one.step.stage != HELD_OUT],
        held_out=next((one for one in generations if one.step.stage == HELD_OUT), None),
    )


def _trainings(folder: Path, steps: Sequence[Step]) -> Iterator[Training]:
    start = 0
    for step in steps:
        rows, num_unreadable = read_log(folder / step.folder / "metrics.jsonl")
        one = Training(
            step=step,
            folder=folder / step.folder,
            result=find_trained(folder / step.folder),
            rows=rows,
            num_unreadable=num_unreadable,
            start=start,
        )
        start = one.end
        yield one


def _evaluation(folder: Path, step: Step) -> Evaluation:
    results = [read_numbers(path.parent) for path in sorted(folder.glob("*/results.json"))]
    compared, answers = find_compared(folder), folder / HELD_OUT_ANSWERS
    return Evaluation(
        step=step,
        results=[one for one in results if not one.provenance.shuffle_images],
        values=compared.values if compared else {},
        agreement=asdict(compared) if compared else {},
        answers=answers,
        answer_counts=_counts(answers),
    )


def _generation(folder: Path, step: Step) -> Generation:
    return Generation(step=step, folder=folder, counts=_counts(folder))


def _counts(folder: Path) -> dict[str, int]:
    counts = find_counts(folder)
    return asdict(counts) if counts else {}
