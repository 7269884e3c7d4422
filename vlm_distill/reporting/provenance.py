"""Where a run comes from: what was distilled into what, when, with which versions, seeds and fingerprints."""

import math
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vlm_distill.errors import one_line
from vlm_distill.reporting.facts import Run
from vlm_distill.runs.plan import ROUNDS, WARMUP
from vlm_distill.runs.provenance import PACKAGES, Provenance
from vlm_distill.state import damaged

Facts = list[tuple[str, str]]


def headline(run: Run) -> Facts:
    """Return the facts at the top of the page."""
    facts = []
    if run.setting("teacher"):
        facts.append(("Teacher", str(run.setting("teacher.model"))))
    size = _num_parameters(run)
    parameters = f" ({_rounded(size)} parameters)" if size else ""
    facts.append(("Student", student_origin(run) + parameters))
    facts.append(("Method", _method(run)))
    facts.append(("Data", str(run.setting("data.path") or run.setting("data.recipe"))))
    facts += _times(run)
    return facts


def versions(run: Run) -> Facts:
    """Return versions, machine and seed."""
    known = run.provenance
    if known is None:
        return []
    facts = [(name, version or "not installed") for name, version in known.packages.items()]
    facts += [("Python", known.python), ("machine", known.machine)]
    facts += [("processes", str(known.num_processes)), ("seed", str(known.seed))]
    return [*facts, *_other_environments(known)]


def _other_environments(known: Provenance) -> Facts:
    """Return in what the steps differ that were made by other starts than the last."""
    found: dict[str, list[str]] = {}
    for name, made in known.steps.items():
        pairs = [(package, made.packages.get(package), known.packages.get(package)) for package in PACKAGES]
        pairs += [("Python", made.python, known.python), ("machine", made.machine, known.machine)]
        pairs += [("processes", str(made.num_processes), str(known.num_processes))]
        if differs := ", ".join(f"{what} {then or 'none'}" for what, then, now in pairs if then != now):
            found.setdefault(differs, []).append(name)
    return [(f"made with {differs}", ", ".join(names)) for differs, names in found.items()]


def origins(run: Run) -> Facts:
    """Return the hashes of what the run started from."""
    known = run.provenance
    if known is None:
        return []
    facts = [("data", known.data), ("teacher", known.teacher), ("student before training", known.student)]
    return [(words, value) for words, value in facts if value]


def fingerprints(run: Run) -> Facts:
    """Return the hashes of data, models and tasks."""
    facts = origins(run)
    known = {value for _, value in facts}
    rows = run.summary.rows
    facts += [(row["model"], row["fingerprint"]) for row in rows if row["fingerprint"] not in known]
    return facts + list(dict.fromkeys(_tasks(run)))


def _tasks(run: Run) -> Iterator[tuple[str, str]]:
    for result in (result for one in run.evaluations for result in one.results):
        note = "" if result.verified else ", columns not verified"
        yield f"task {result.task} version {result.version}{note}", result.task_hash


def student_origin(run: Run, named: Callable[[str], str] = str) -> str:
    """Return in a few words what the student was before any training; `named` writes the name of a model."""
    if run.setting("student.model"):
        return named(run.setting("student.model"))
    layers = run.setting("student.shrink.layers")
    if layers is not None:
        count = len(layers) if isinstance(layers, list) else layers
        return f"the teacher cut to {count} layers"
    parts = {"vision": "vision tower", "language": "language model"}
    return " and ".join(
        _part(run.setting(f"student.build.{key}") or {}, what, named) for key, what in parts.items()
    )


def _part(part: dict[str, Any], what: str, named: Callable[[str], str]) -> str:
    """Return in a few words where a part of a built student comes from."""
    source = part.get("from")
    if source:
        return f"{what} of {'the teacher' if source == 'teacher' else named(source)}"
    if part.get("model"):
        return f"{what} {named(part['model'])}"
    if part.get("name"):
        return f"{what} {part['name']}"
    layers = part.get("num_hidden_layers") or part.get("layers")
    width = part.get("hidden_size") or part.get("width")
    return f"a new {what} of {layers} layers of width {width}"


def _num_parameters(run: Run) -> int:
    """Return the number of weights in a student's files, tied ones once; 0 where none is saved yet."""
    for place in (*(one.folder / "model" for one in run.trainings), run.folder / run.start.folder):
        files = sorted(place.glob("*.safetensors"))
        if files:
            return sum(map(_num_weights, files))
    return 0


def _num_weights(path: Path) -> int:
    try:
        with safe_open(path, framework="np") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise damaged(path, one_line(error), remedy=f"delete {path.parents[1]} to train it again") from None


def _rounded(count: int) -> str:
    for size, unit in ((10**9, "billion"), (10**6, "million")):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:,}"


def _method(run: Run) -> str:
    parts = [f"warm-up ({one.step.settings['objective']['kind']})" for one in run.track(WARMUP)]
    if rounds := run.track(ROUNDS):
        kind = rounds[0].step.settings["objective"]["kind"]
        parts.append(f"{len(rounds)} round{'s' if len(rounds) > 1 else ''} of {kind}")
    return ", then ".join(parts)


def _times(run: Run) -> Facts:
    """Return when the first and the last result were written, by the times of the files."""
    patterns = ("data/manifest.json", "*/stage.json", "eval/*/agreement.json", "eval/*/*/results.json")
    times = sorted(path.stat().st_mtime for pattern in patterns for path in run.folder.glob(pattern))
    if not times:
        return []
    return [("First result", _minute(times[0])), ("Last result", _minute(times[-1]))]


def _minute(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
