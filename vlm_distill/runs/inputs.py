"""What a run reads from outside: compared with what its results were made from, before anything is written.

The config is compared in folder.py. Who answers (`generate.engine`) is no input: responses are facts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vlm_distill.data.recipe import fingerprint_now
from vlm_distill.data.store import all_stored
from vlm_distill.errors import DataError, few
from vlm_distill.models.fingerprint import locate, require_as_written
from vlm_distill.runs.config import ModelConfig, RunConfig
from vlm_distill.runs.evaluator import AGREEMENT
from vlm_distill.runs.plan import BASE, TEACHER, Step
from vlm_distill.runs.prepare import recipe_of
from vlm_distill.runs.provenance import Provenance, find_provenance
from vlm_distill.runs.teacher import load_options
from vlm_distill.training.checkpoint import has_checkpoints
from vlm_distill.training.train import find_trained


def require_same_inputs(config: RunConfig, folder: Path, steps: Sequence[Step]) -> None:
    """Refuse data and models that are others than those that results in the folder were made from.

    Nothing is written. Where nothing was made from what changed, it may change.

    Raises:
        DataError: an input changed, or a file of the run is not what was written.
    """
    known = find_provenance(folder)
    if known is None:
        return
    with_results = [step for step in steps if _has_results(folder, step)]
    for one in _inputs(config, folder, steps, known):
        used_by = [step.name for step in with_results if one.is_read_by(step)]
        if used_by and (now := one.now()) != one.before:
            raise DataError(
                f"{folder}: {one.what} changed (fingerprint {one.before[:12]}, now {now[:12]}) since it was "
                f"used by {few(used_by, most=4)}; give the run another `output`, or delete the folder to "
                "start anew"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Input:
    """What is read from outside: its fingerprint `before`, and what computes that of `now`."""

    what: str
    before: str
    now: Callable[[], str]
    is_read_by: Callable[[Step], bool]


def _inputs(config: RunConfig, folder: Path, steps: Sequence[Step], known: Provenance) -> Iterator[_Input]:
    """Yield what a run reads; a student that it has made itself is compared with its record instead."""
    teacher, student = config.teacher, config.student
    if teacher is not None and known.teacher is not None:
        what, now = f"the teacher ({teacher.model})", _fingerprint(teacher, config.device)
        yield _Input(what=what, before=known.teacher, now=now, is_read_by=_reads_teacher)
    if student.model is not None:
        start = ModelConfig(model=student.model, trust_remote_code=student.trust_remote_code)
        what, now = f"the student before training ({student.model})", _fingerprint(start, config.device)
        yield _Input(what=what, before=known.student, now=now, is_read_by=_reads_student)
    else:
        made = folder / next(step for step in steps if step.name == BASE[1]).folder
        if made.is_dir():
            require_as_written(made)
    recipe = recipe_of(config.data)
    now = partial(fingerprint_now, recipe, folder / "data")
    # Last, because changed sources are read whole.
    yield _Input(what=f"the data ({recipe.name})", before=known.data, now=now, is_read_by=_reads_data)


def _fingerprint(model: ModelConfig, device: str) -> Callable[[], str]:
    def compute() -> str:
        return locate(model.model, load_options(model, device))[1]

    return compute


def _reads_teacher(step: Step) -> bool:
    return step.track == TEACHER or step.kind in ("cache", "train") or _compares(step)


def _reads_student(step: Step) -> bool:
    return step.track != TEACHER


def _reads_data(step: Step) -> bool:
    return step.kind != "evaluate" or _compares(step)


def _compares(step: Step) -> bool:
    return step.kind == "evaluate" and bool(step.settings["compares"])


def _has_results(folder: Path, step: Step) -> bool:
    """Return whether a step has left what would be lost with its inputs; half a set of responses is not."""
    where = folder / step.folder
    if step.kind == "generate":
        return all_stored(where)
    if step.kind == "cache":
        return where.with_name(f"{where.name}.json").is_file()
    if step.kind == "train":
        return find_trained(where) is not None or has_checkpoints(where)
    if step.kind == "evaluate":
        return (where / AGREEMENT).exists() or any(where.glob("*/results.json"))
    return False
