"""The steps of a run as data: what is done, in which order, from what and into which folder.

`plan` is a pure function of the config. The pipeline walks over its steps; what a run is made of is read from
stages.json by everything else (report, card, export, benchmarks), so that no name has to be taken apart.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vlm_distill.config import as_json
from vlm_distill.data.augment import Augment
from vlm_distill.errors import ConfigError, DataError, did_you_mean
from vlm_distill.files import read_json
from vlm_distill.losses import ObjectiveConfig
from vlm_distill.records import Author
from vlm_distill.runs.config import ControlConfig, RunConfig
from vlm_distill.state import damaged, read_state, write_state
from vlm_distill.training.config import TrainConfig

Kind = Literal["prepare", "generate", "cache", "train", "evaluate"]
FORMAT_VERSION: Literal[2] = 2
STAGES = "stages.json"
REMEDY = "start the run again in this folder, which writes the file anew"
# Names of tracks and stages; every other track is that of a control.
TEACHER, STUDENT, HELD_OUT, WARMUP, ROUNDS = "teacher", "student", "held_out", "warmup", "rounds"
BASE = ("data.prepare", f"{STUDENT}.prepare")
HELD_OUT_STEPS = (f"{HELD_OUT}.generate", f"{HELD_OUT}.cache")


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of a run.

    `stage` groups the steps that make one student (`round_1`); its name and the kind make the name of the
    step. `label` is what people read, `folder` where below the run folder the results are, `needs` names the
    steps that must be complete before. `track` is the sequence of students that it belongs to: the rounds,
    the warm-up, a control, or what comes before all of them. `round` counts from 1 within a track and is 0
    before. `starts_from` is the stage whose student it takes, empty for the student before any training.
    `settings` are those that decide its results, as JSON. `titles` are what the terms of its loss are called,
    by metric. A step that the config no longer asks for, of which results are there, is not `is_planned`.
    """

    stage: str
    kind: Kind
    label: str
    folder: str
    track: str
    round: int = 0
    num_rounds: int = 1
    needs: tuple[str, ...] = ()
    starts_from: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    titles: Mapping[str, str] = field(default_factory=dict)
    is_planned: bool = True

    @property
    def name(self) -> str:
        return f"{self.stage}.{self.kind}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """What stages.json holds."""

    steps: tuple[Step, ...]
    format_version: Literal[2] = FORMAT_VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class Track:
    """Students that one objective trains one after the other: the warm-up, the rounds, or a control.

    `budget_of` names the train steps whose trained tokens a control divides among its rounds.
    """

    name: str
    objective: ObjectiveConfig
    train: TrainConfig
    num_rounds: int = 1
    augment: Augment | None = None
    budget_of: tuple[str, ...] = ()

    def label(self, round: int) -> str:
        if self.name == WARMUP:
            return "warm-up"
        if self.name == ROUNDS:
            return f"round {round}"
        return self.name if self.num_rounds == 1 else f"{self.name} round {round}"

    def measured_label(self, round: int) -> str:
        """Return what a student is called where models are compared; of a control only the last one is."""
        return self.label(round) if self.name in (WARMUP, ROUNDS) else self.name

    def stage(self, round: int) -> str:
        return WARMUP if self.name == WARMUP else self.label(round).replace(" ", "_")

    def responses(self, round: int) -> str:
        """Return the name under which the student's stored responses of a round are kept."""
        if self.name == WARMUP:
            return "student_round_0"
        return f"student_round_{round}" if self.name == ROUNDS else f"{self.name}_student_round_{round}"


def plan(config: RunConfig) -> list[Step]:
    """Return the steps of a run in their order; a step stands behind everything that it needs."""
    steps = [*_preparation(config), *_of_teacher(config)]
    if config.evaluate:
        steps.append(_evaluation(config, steps[1], needs=BASE))
    for track in tracks(config):
        start = WARMUP if config.warmup and track.name != WARMUP else ""
        for number in range(1, track.num_rounds + 1):
            steps += _of_round(config, track, number, start=start)
            start = track.stage(number)
    names = {step.name for step in steps}
    # Nothing waits for what this run does not do.
    return [
        replace(step, needs=tuple(name for name in step.needs if name in names and name != step.name))
        for step in steps
    ]


def tracks(config: RunConfig) -> list[Track]:
    """Return the sequences of students that a run trains, in their order."""
    found = []
    if config.warmup:
        warmup = config.warmup
        found.append(
            Track(name=WARMUP, objective=warmup.objective, train=warmup.train, augment=warmup.augment)
        )
    if not config.rounds:
        return found
    assert config.train is not None
    assert config.objective is not None
    rounds = Track(name=ROUNDS, objective=config.objective, train=config.train, num_rounds=config.rounds)
    budget = tuple(f"{rounds.stage(number)}.train" for number in range(1, config.rounds + 1))
    return [*found, rounds, *(_control(one, config.train, budget) for one in config.controls)]


def track_of(config: RunConfig, step: Step) -> Track:
    """Return the track of a step that makes a student."""
    return next(track for track in tracks(config) if track.name == step.track)


def _control(control: ControlConfig, train: TrainConfig, budget: tuple[str, ...]) -> Track:
    own = {"learning_rate": control.learning_rate, "batch_size": control.batch_size}
    changed = {name: value for name, value in own.items() if value is not None}
    # How long it trains is known when the rounds are over.
    unknown = {"steps": None, "epochs": None, "tokens": None}
    return Track(
        name=control.name,
        objective=control.objective,
        train=train.model_copy(update={**unknown, **changed}),
        num_rounds=control.rounds,
        budget_of=budget,
    )


def compares(config: RunConfig) -> bool:
    """Return whether students are compared with their teacher on held-out prompts, if there are any."""
    return bool(config.evaluate and config.teacher and config.evaluate.agreement_examples)


def _preparation(config: RunConfig) -> list[Step]:
    """Return the data, and the student before any training."""
    data = Step(stage="data", kind="prepare", label="data", folder="data", track="data")
    student = Step(
        stage=STUDENT,
        kind="prepare",
        label=start_label(config),
        folder="student_at_start",
        track=STUDENT,
        needs=("data.prepare",),
        settings=config.student.model_dump(mode="json"),
    )
    return [data, student]


def _of_teacher(config: RunConfig) -> Iterator[Step]:
    """Yield what the teacher answers, held-out prompts first, and how it scores."""
    step = Step(
        stage=TEACHER, kind="generate", label="teacher", folder="responses/teacher", track=TEACHER, needs=BASE
    )
    if compares(config):
        assert config.evaluate is not None
        sampling = {"temperature": 0.0, "max_new_tokens": config.evaluate.agreement_tokens}
        settings = {"author": "teacher", "examples": config.evaluate.agreement_examples, "sampling": sampling}
        held_out = replace(
            step, stage=HELD_OUT, label="held-out", folder="held_out/teacher", settings=settings
        )
        yield held_out
        if config.cache:
            yield replace(
                held_out,
                kind="cache",
                folder=f"cache/{HELD_OUT}",
                needs=(*BASE, held_out.name),
                # Agreement compares whole distributions, whatever tier is trained on.
                settings={"tier": "hidden", "of": {"teacher": HELD_OUT}},
            )
    if config.teacher and config.evaluate:
        yield _evaluation(config, step, needs=BASE)
    if any("teacher" in track.objective.build().stored_authors for track in tracks(config)):
        yield replace(step, settings=_generation(config, "teacher"))


def _of_round(config: RunConfig, track: Track, number: int, *, start: str) -> Iterator[Step]:
    """Yield the steps that make and measure one student of a track out of that of the stage `start`."""
    objective = track.objective.build()
    step = Step(
        stage=track.stage(number),
        kind="train",
        label=track.label(number),
        folder=track.stage(number),
        track=track.name,
        round=0 if track.name == WARMUP else number,
        num_rounds=track.num_rounds,
        needs=(*BASE, f"{start}.train"),
        starts_from=start,
    )
    authors, own = objective.stored_authors, track.responses(number)
    if "student" in authors:
        settings = _generation(config, "student")
        yield replace(step, kind="generate", folder=f"responses/{own}", settings=settings)
    responses = [f"{TEACHER}.generate"] if "teacher" in authors else []
    responses += [f"{step.stage}.generate"] if "student" in authors else []
    if config.cache and objective.needs_teacher:
        of = {author: own if author == "student" else author for author in sorted(objective.authors)}
        yield replace(
            step,
            kind="cache",
            folder=f"cache/{step.stage}",
            needs=(*step.needs, *responses),
            settings={"tier": config.cache.tier, "of": of},
        )
    watched = HELD_OUT_STEPS if track.train.evaluate_every else ()
    yield replace(
        step,
        needs=(*step.needs, *responses, f"{step.stage}.cache", *watched, *track.budget_of),
        settings=_training(track),
        titles=objective.titles,
    )
    is_last = number == track.num_rounds
    if config.evaluate and (is_last or (track.name == ROUNDS and config.evaluate.every_round)):
        measured = replace(step, label=track.measured_label(number), starts_from=step.stage)
        yield _evaluation(config, measured, needs=(*BASE, step.name))


def _evaluation(config: RunConfig, step: Step, *, needs: tuple[str, ...]) -> Step:
    assert config.evaluate is not None
    is_teacher = step.track == TEACHER
    return replace(
        step,
        kind="evaluate",
        folder=f"eval/{step.label.replace(' ', '_')}",
        needs=needs if is_teacher else (*needs, *HELD_OUT_STEPS),
        settings={
            **config.evaluate.model_dump(mode="json"),
            "compares": compares(config) and not is_teacher,
        },
    )


def _generation(config: RunConfig, author: Author) -> dict[str, Any]:
    return {"author": author, "sampling": config.generate.sampling.model_dump(mode="json")}


def _training(track: Track) -> dict[str, Any]:
    return {
        "objective": as_json(track.objective),
        "train": track.train.model_dump(mode="json"),
        "augment": track.augment.model_dump(mode="json") if track.augment else None,
        "budget_of": list(track.budget_of),
    }


def start_label(config: RunConfig) -> str:
    """Return what the student before any training is called."""
    if config.student.build:
        return "random"
    return "shrunk" if config.student.shrink else "student"


def write_plan(folder: Path, steps: Sequence[Step]) -> None:
    """Write stages.json; steps of an older plan with a folder of results stay in it, not planned any more.

    A folder that a planned step writes to holds that step's results. A damaged plan is written anew.
    """
    taken = {step.name for step in steps} | {step.folder for step in steps}
    try:
        old = read_plan(folder)
    except DataError:
        old = []
    left = [
        replace(step, is_planned=False)
        for step in old
        if taken.isdisjoint((step.name, step.folder)) and (folder / step.folder).exists()
    ]
    write_state(folder / STAGES, _Plan(steps=(*steps, *left)))


def plan_format(folder: Path) -> int | None:
    """Return the format of the steps in a run folder, None without any.

    What is damaged is written anew, in the present format.
    """
    if not (folder / STAGES).exists():
        return None
    try:
        return int(read_json(folder / STAGES)["format_version"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return FORMAT_VERSION


def read_plan(folder: Path) -> list[Step]:
    """Return the steps of a run folder.

    Raises:
        DataError: stages.json is missing, damaged, or of another format.
    """
    path = folder / STAGES
    steps = list(read_state(_Plan, path, remedy=REMEDY).steps)
    if missing := set(BASE) - {step.name for step in steps}:
        raise damaged(path, f"no step {min(missing)}", remedy=REMEDY)
    return steps


def choose(steps: Sequence[Step], names: Sequence[str]) -> list[Step]:
    """Return the steps of the given names, in their order; a stage (`round_1`) stands for all its steps.

    Raises:
        ConfigError: there is no step or stage of that name.
    """
    known = {step.name for step in steps} | {step.stage for step in steps}
    for name in names:
        if name not in known:
            raise ConfigError(f"--stage {name}: no such step in this run; {did_you_mean(name, known)}")
    return [step for step in steps if step.name in names or step.stage in names]
