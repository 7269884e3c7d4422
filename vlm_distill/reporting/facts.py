"""What a run is and how far it is: one reading of its folder, step by step of its plan.

Page, model card and export are made from this, of a finished run or half way. Only what is large is read
elsewhere: lengths of responses (response_sets.py) and answers (gallery.py).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_distill.config import read_yaml
from vlm_distill.errors import DataError
from vlm_distill.files import read_json
from vlm_distill.generation.work import COUNTS
from vlm_distill.runs.folder import require_plan
from vlm_distill.runs.plan import HELD_OUT, ROUNDS, STUDENT, WARMUP, Step, read_plan

Values = Mapping[str, Any]
RESULT_KEYS = {"task", "metrics", "provenance"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """The training of one student: what it has logged, and its `result`, empty until it is over.

    Each of the `rows` has `step`; `num_unreadable` lines of the log were cut short by a kill. `start` and
    `end` lie on an axis of optimiser steps that runs through all trainings; `start` is the last step before.
    """

    step: Step
    folder: Path
    result: Values
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
        return bool(self.result)

    @property
    def end(self) -> int:
        steps = [*(row["step"] for row in self.rows), self.result.get("steps", 0)]
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
    results: Sequence[Values]
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

    `data` is the manifest of the prepared data; it is empty where there is none yet, as are `provenance` and
    `summary`. `generations` are the responses that are trained on, `held_out` the teacher's answers to
    held-out prompts, None where nothing is compared with it.
    """

    folder: Path
    config: Values
    provenance: Values
    summary: Values
    data: Values
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
        ConfigError: config.yaml is not a mapping in YAML.
        DataError: the folder is no run folder or that of an earlier version, or a file in it is damaged.
    """
    if not (folder / "config.yaml").is_file():
        raise DataError(f"{folder}: expected the folder of a run, found no config.yaml in it")
    require_plan(folder)
    steps = read_plan(folder)
    generations = [_generation(folder / step.folder, step) for step in steps if step.kind == "generate"]
    return Run(
        folder=folder,
        config=read_yaml(folder / "config.yaml"),
        provenance=read_mapping(folder / "provenance.json"),
        summary=read_mapping(folder / "summary.json"),
        data=read_mapping(folder / "data" / "manifest.json"),
        steps=steps,
        trainings=list(_trainings(folder, [step for step in steps if step.kind == "train"])),
        evaluations=[_evaluation(folder / step.folder, step) for step in steps if step.kind == "evaluate"],
        generations=[one for one in generations if one.step.stage != HELD_OUT],
        held_out=next((one for one in generations if one.step.stage == HELD_OUT), None),
    )


def _trainings(folder: Path, steps: Sequence[Step]) -> Iterator[Training]:
    start = 0
    for step in steps:
        rows, num_unreadable = _read_log(folder / step.folder / "metrics.jsonl")
        one = Training(
            step=step,
            folder=folder / step.folder,
            result=read_mapping(folder / step.folder / "stage.json"),
            rows=rows,
            num_unreadable=num_unreadable,
            start=start,
        )
        start = one.end
        yield one


def _read_log(path: Path) -> tuple[list[Values], int]:
    """Return the rows of a log and how many lines are none; no rows where nothing is logged yet."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    rows: list[Values] = []
    num_unreadable = 0
    for line in filter(None, lines):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and is_number(row.get("step")):
            rows.append(row)
        else:
            num_unreadable += 1
    return rows, num_unreadable


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _evaluation(folder: Path, step: Step) -> Evaluation:
    results = [_read_result(path) for path in sorted(folder.glob("*/results.json"))]
    agreement = read_mapping(folder / "agreement.json")
    return Evaluation(
        step=step,
        results=[one for one in results if not one["provenance"]["shuffle_images"]],
        values=agreement.get("values", {}),
        agreement=agreement,
        answers=folder / "held_out",
        answer_counts=read_mapping(folder / "held_out" / COUNTS),
    )


def _read_result(path: Path) -> dict[str, Any]:
    found = read_mapping(path)
    if missing := RESULT_KEYS - found.keys():
        raise DataError(
            f"{path}: expected the result of a task, and {', '.join(sorted(missing))} is missing; delete it"
        )
    return found


def _generation(folder: Path, step: Step) -> Generation:
    return Generation(step=step, folder=folder, counts=read_mapping(folder / COUNTS))


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, an empty one where there is no file.

    Raises:
        DataError: the file holds something else.
    """
    if not path.is_file():
        return {}
    try:
        value = read_json(path)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object; delete the file and run the same command again")
    return value
