"""What must hold for every command, whatever its inputs are."""

import json
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.case import Case, Problem
from tests.fuzz.command import Outcome

CODES = (0, 2, 130, 143)
ERROR = "vlm-distill: error: "
# Counts that say something else than where a row ended. Those of one source, with a slash, are in the sums.
OTHER_COUNTS = ("read", "train_images", "held_out_images", "without_references")


def wrong_ending(outcome: Outcome) -> Iterator[Problem]:
    """Yield what is wrong with the exit code and the lines that were printed."""
    if outcome.exception:
        yield Problem(sort="traceback", place=outcome.place, detail=outcome.exception)
        return
    if outcome.code not in CODES:
        yield Problem(sort="exit code", place=str(outcome.code), detail=outcome.printed[-300:])
    if "Traceback (most recent call last)" in outcome.printed:
        yield Problem(sort="printed traceback", place="", detail=outcome.printed[-600:])
    errors = [line for line in outcome.printed.splitlines() if line.startswith(ERROR)]
    if len(errors) != (outcome.code == 2):
        detail = f"exit {outcome.code}: {outcome.printed[-300:]}"
        yield Problem(sort="error lines", place=f"{len(errors)}", detail=detail)


def written_elsewhere(written: set[str], changed: list[str], allowed: tuple[Path, ...]) -> Iterator[Problem]:
    """Yield a problem if something was written that is not below the allowed paths."""
    foreign = [path for path in written if not any(_is_of(Path(path), root) for root in allowed)]
    if found := sorted({*foreign, *changed}):
        detail = f"{len(found)} paths: {', '.join(found[:5])}"
        yield Problem(sort="written outside", place=Path(found[0]).name, detail=detail)


def _is_of(path: Path, root: Path) -> bool:
    """Return whether a path is that of an output, around or below it, or its temporary name beside it."""
    is_temporary = root.parent in path.parents and path.relative_to(root.parent).parts[0].startswith(
        f".{root.name}."
    )
    return path == root or root in path.parents or path in root.parents or is_temporary


def uncounted_rows(case: Case, output: Path) -> Iterator[Problem]:
    """Yield a problem unless what was read is what is used and what was left out for a counted reason."""
    manifest = output / "data" / "manifest.json"
    counts = json.loads(manifest.read_text())["counts"]
    ends = {name: count for name, count in counts.items() if name not in OTHER_COUNTS and "/" not in name}
    if counts["read"] != sum(ends.values()):
        yield Problem(sort="row without a count", place="data", detail=f"{counts}")
    if case.rows is not None and counts["read"] != case.rows:
        yield Problem(sort="row not read", place="data", detail=f"{case.rows} rows, {counts}")
    if case.rows is not None:
        yield from _uncounted_prompts(counts["train"], output)
    for part in ("train", "held_out"):
        # Texts may hold other ends of lines than those of the file.
        num_lines = (output / "data" / f"{part}.jsonl").read_text().count("\n")
        if num_lines != counts[part]:
            yield Problem(sort="row without a count", place=part, detail=f"{num_lines} lines, {counts}")


def other_results(case: Case, folder: Path, material: Path) -> Iterator[Problem]:
    """Yield a problem unless the scores and distances of a run are those that it had before."""
    if case.summary is None:
        return
    found, expected = (json.loads((one / case.summary).read_text()) for one in (folder, material))
    if found != expected:
        yield Problem(
            sort="other results", place=case.summary, detail="exit 0, and other numbers than before"
        )


def _uncounted_prompts(num_prompts: int, output: Path) -> Iterator[Problem]:
    """Yield a problem unless every prompt has one response, or was left out for a counted reason."""
    counts = json.loads((output / "responses" / "teacher" / "counts.json").read_text())
    ends = sum(count for name, count in counts.items() if name not in ("prompts", "checksum"))
    if not num_prompts == counts["prompts"] == ends:
        yield Problem(sort="row without a count", place="responses", detail=f"{num_prompts}, {counts}")
