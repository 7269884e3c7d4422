"""Where a run comes from: what was distilled into what, when, with which versions, seeds and fingerprints."""

import math
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from safetensors import safe_open

from vlm_distill.files import read_json
from vlm_distill.reporting.run_files import RunFiles, result_folders

Facts = list[tuple[str, str]]


def headline(run: RunFiles) -> Facts:
    """Return the facts at the top of the page."""
    facts = []
    if run.setting("teacher"):
        facts.append(("Teacher", str(run.setting("teacher.model"))))
    facts.append(("Student", _student(run)))
    facts.append(("Method", _method(run)))
    facts.append(("Data", str(run.setting("data.recipe") or run.setting("data.path"))))
    facts += _times(run)
    return facts


def versions(run: RunFiles) -> Facts:
    """Return versions, machine and seed."""
    packages = run.provenance.get("packages", {})
    facts = [(name, version or "not installed") for name, version in packages.items()]
    known = {"python": "Python", "machine": "machine", "num_processes": "processes", "seed": "seed"}
    facts += [(words, str(run.provenance[name])) for name, words in known.items() if name in run.provenance]
    return facts


def fingerprints(run: RunFiles) -> Facts:
    """Return the hashes of data, models and tasks."""
    facts = [
        (words, str(run.provenance[name]))
        for name, words in (("data", "data"), ("teacher", "teacher"), ("student", "student before training"))
        if run.provenance.get(name)
    ]
    known = {value for _, value in facts}
    rows = run.summary.get("rows", [])
    facts += [(row["model"], row["fingerprint"]) for row in rows if row["fingerprint"] not in known]
    return facts + list(dict.fromkeys(_tasks(run)))


def _tasks(run: RunFiles) -> Iterator[tuple[str, str]]:
    for label in run.found_labels:
        for folder in result_folders(run.evaluation(label)):
            values = read_json(folder / "results.json")
            note = "" if values["verified"] else ", columns not verified"
            yield f"task {values['task']} version {values['version']}{note}", values["task_hash"]


def _student(run: RunFiles) -> str:
    size = _num_parameters(run)
    return _student_origin(run) + (f" ({_rounded(size)} parameters)" if size else "")


def _student_origin(run: RunFiles) -> str:
    if run.setting("student.model"):
        return str(run.setting("student.model"))
    layers = run.setting("student.shrink.layers")
    if layers is not None:
        count = len(layers) if isinstance(layers, list) else layers
        return f"the teacher cut to {count} layers"
    vision, language = (run.setting(f"student.build.{part}") or {} for part in ("vision", "language"))
    return f"{_part(vision, 'vision tower')} and {_part(language, 'language model')}"


def _part(part: dict[str, Any], what: str) -> str:
    """Return in a few words where a part of a built student comes from."""
    source = part.get("from")
    if source:
        return f"{what} of {'the teacher' if source == 'teacher' else source}"
    named = part.get("model") or part.get("name")
    if named:
        return f"{what} {named}"
    layers = part.get("num_hidden_layers") or part.get("layers")
    width = part.get("hidden_size") or part.get("width")
    return f"a new {what} of {layers} layers of width {width}"


def _num_parameters(run: RunFiles) -> int:
    """Return the number of weights in a student's files, tied ones once; 0 where none is saved yet."""
    places = [stage.folder / "model" for stage in run.stages]
    places += [run.folder / name for name in ("student_at_start", "student_at_random")]
    for place in places:
        files = sorted(place.glob("*.safetensors"))
        if files:
            return sum(map(_num_weights, files))
    return 0


def _num_weights(path: Path) -> int:
    with safe_open(path, framework="np") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def _rounded(count: int) -> str:
    for size, unit in ((10**9, "billion"), (10**6, "million")):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:,}"


def _method(run: RunFiles) -> str:
    steps = []
    if run.setting("warmup"):
        steps.append(f"warm-up ({run.setting('warmup.objective.kind')})")
    rounds = run.setting("rounds")
    if rounds:
        steps.append(f"{rounds} round{'s' if rounds > 1 else ''} of {run.setting('objective.kind')}")
    return ", then ".join(steps)


def _times(run: RunFiles) -> Facts:
    """Return when the first and the last result were written, by the times of the files."""
    patterns = ("data/manifest.json", "*/stage.json", "eval/*/agreement.json", "eval/*/*/results.json")
    times = sorted(path.stat().st_mtime for pattern in patterns for path in run.folder.glob(pattern))
    if not times:
        return []
    return [("First result", _minute(times[0])), ("Last result", _minute(times[-1]))]


def _minute(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
