"""Everything that a run skipped, dropped or cut, with its count."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_distill.files import read_json
from vlm_distill.generation.work import COUNTS
from vlm_distill.reporting.response_sets import ResponseSet
from vlm_distill.reporting.run_files import RunFiles, read_mapping, result_folders

DATA_WORDS = {
    "read": "rows read",
    "bad_image": "rows skipped for a damaged image",
    "duplicates": "duplicates dropped",
    "left_out_by_mixture": "left out by the weights of the mixture",
    "train": "prompts to train on",
    "held_out": "prompts held out",
    "train_images": "images to train on",
    "held_out_images": "images held out",
}
RESPONSE_COLUMNS = (
    "prompts",
    "too long",
    "empty",
    "aborted",
    "cut at the limit",
    "prompts unanswered",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table of counts; a None in a row is a number that is not known yet."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[int | None]]]


def count_tables(run: RunFiles, sets: Sequence[ResponseSet]) -> list[Table]:
    """Return the counts of data, responses and evaluations, without empty tables."""
    tables = [_data(run), _responses(run, sets), _training(run), _evaluations(run)]
    return [table for table in tables if table.rows]


def _data(run: RunFiles) -> Table:
    counts = read_mapping(run.folder / "data" / "manifest.json").get("counts", {})
    order = [*DATA_WORDS, *(name for name in counts if name not in DATA_WORDS)]
    rows = [(_data_words(name), (counts[name],)) for name in order if name in counts]
    limit = run.setting("data.limit")
    if counts and limit is not None and limit < counts["train"]:
        rows.append(("prompts to train on beyond data.limit, not used", (counts["train"] - limit,)))
    return Table(title="Data", columns=("count",), rows=rows)


def _data_words(name: str) -> str:
    source, slash, reason = name.rpartition("/")
    if reason.startswith("filtered_"):
        words = f"rows dropped by the filter {reason.removeprefix('filtered_')}"
    else:
        words = DATA_WORDS.get(reason, reason.replace("_", " "))
    return f"{words} (source {source})" if slash else words


def _responses(run: RunFiles, sets: Sequence[ResponseSet]) -> Table:
    rows: list[tuple[str, Sequence[int | None]]] = [
        (one.label, (one.prompts, one.overlong, one.empty, one.aborted, one.num_cut, one.unanswered))
        for one in sets
    ]
    for label, path in _held_out_counts(run):
        counts = read_mapping(path)
        numbers = [counts[name] for name in ("prompts", "overlong", "empty", "aborted", "length")]
        # One greedy response a prompt: what is not stored is unanswered.
        rows.append((f"held out: {label}", (*numbers, sum(numbers[1:4]))))
    return Table(title="Responses", columns=RESPONSE_COLUMNS, rows=rows)


def _held_out_counts(run: RunFiles) -> Iterator[tuple[str, Any]]:
    places = [("teacher", run.folder / "held_out" / "teacher")]
    places += [(label, run.evaluation(label) / "held_out") for label in run.found_labels]
    for label, folder in places:
        if (folder / COUNTS).is_file():
            yield label, folder / COUNTS


def _training(run: RunFiles) -> Table:
    found = ((path.parent.name, read_json(path)) for path in sorted(run.folder.glob("*/stage.json")))
    rows = [(name, (stage["left_out"], stage["steps"], stage["tokens"])) for name, stage in found]
    columns = ("prompts left out", "optimiser steps", "response tokens trained")
    return Table(title="Training", columns=columns, rows=rows)


def _evaluations(run: RunFiles) -> Table:
    found = [
        (f"{label}: {values['task']}", _evaluation(values))
        for label in run.found_labels
        for values in (read_json(path / "results.json") for path in result_folders(run.evaluation(label)))
    ]
    names = dict.fromkeys(name for _, counts in found for name in counts)
    # Each metric counts the answers that it could not parse; most never do.
    is_shown = {name: name[0] != "unparsed" or any(counts.get(name) for _, counts in found) for name in names}
    columns = [name for name in names if is_shown[name]]
    rows = [(label, [counts.get(name) for name in columns]) for label, counts in found]
    return Table(title="Evaluation", columns=[": ".join(name) for name in columns], rows=rows)


def _evaluation(values: Mapping[str, Any]) -> dict[tuple[str, ...], int]:
    """Return the counts of one result by the words of their columns."""
    counts, provenance = values["counts"], values["provenance"]
    unparsed = {name: count for name, count in counts.items() if name.startswith("unparsed_")}
    return {
        ("questions",): counts["examples"],
        ("beyond the limit",): provenance["data_counts"].get("beyond_limit", 0),
        ("clusters",): counts["clusters"],
        ("too long",): provenance["responses"].get("overlong", 0),
        ("no response",): counts["no_response"],
        ("empty",): counts["empty"],
        ("cut at the limit",): counts["truncated"],
        **{("unparsed", name.removeprefix("unparsed_")): count for name, count in unparsed.items()},
    }
