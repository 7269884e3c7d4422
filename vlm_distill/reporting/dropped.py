"""Everything that a run skipped, dropped or cut, with its count."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from vlm_distill.evaluation.results import Numbers
from vlm_distill.evaluation.table import words
from vlm_distill.reporting.facts import Run
from vlm_distill.reporting.response_sets import ResponseSet

DATA_WORDS = {
    "read": "rows read",
    "broken_row": "rows skipped: cannot be read",
    "missing_cell": "rows skipped: a cell is missing or empty",
    "wrong_cell": "rows skipped: a cell holds something else than its use needs",
    "bad_conversation": "rows skipped: no conversation of user and assistant in turn",
    "bad_prompt": "rows skipped: the prompt template fails on them",
    "bad_text": "rows skipped: no text in Unicode, or a control character",
    "bad_image": "rows skipped: an image is missing, damaged or refused",
    "repeated_id": "rows skipped: an earlier row has their id",
    "no_question": "rows left out: they may lack a question, and do",
    "without_references": "prompts without a reference",
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


def count_tables(run: Run, sets: Sequence[ResponseSet]) -> list[Table]:
    """Return the counts of data, responses and evaluations, without empty tables."""
    tables = [_data(run), _responses(run, sets), _training(run), _agreement(run), _evaluations(run)]
    return [table for table in tables if table.rows]


def _data(run: Run) -> Table:
    counts = run.data.counts if run.data else {}
    order = [*DATA_WORDS, *(name for name in counts if name not in DATA_WORDS)]
    rows = [(_data_words(name), (counts[name],)) for name in order if name in counts]
    limit = run.setting("data.limit")
    if counts and limit is not None and limit < counts["train"]:
        rows.append(("prompts to train on beyond data.limit, not used", (counts["train"] - limit,)))
    unreadable = run.provenance.unreadable_prompts if run.provenance else {}
    for what, count in unreadable.items():
        rows.append((f"{what} prompts left out: a model cannot read them", (count,)))
    return Table(title="Data", columns=("count",), rows=rows)


def _data_words(name: str) -> str:
    source, slash, reason = name.rpartition("/")
    if reason.startswith("filtered_"):
        meaning = f"rows dropped by the filter {reason.removeprefix('filtered_')}"
    else:
        meaning = DATA_WORDS.get(reason, words(reason))
    return f"{meaning} (source {source})" if slash else meaning


def _responses(run: Run, sets: Sequence[ResponseSet]) -> Table:
    dropped = ("prompts", "overlong", "empty", "aborted")
    rows: list[tuple[str, Sequence[int | None]]] = [
        (one.label, (*(one.counts.get(name) for name in dropped), one.num_cut, one.num_unanswered))
        for one in sets
    ]
    held_out = [(run.held_out.label, run.held_out.counts)] if run.held_out else []
    held_out += [(one.label, one.answer_counts) for one in run.evaluations]
    for label, counts in held_out:
        if counts:
            numbers = [counts[name] for name in (*dropped, "length")]
            # One greedy response a prompt: what is not stored is unanswered.
            rows.append((f"held out: {label}", (*numbers, sum(numbers[1:4]))))
    return Table(title="Responses", columns=RESPONSE_COLUMNS, rows=rows)


def _training(run: Run) -> Table:
    found = [(one.step.stage, asdict(one.result)) for one in run.trainings if one.result]
    keys = {
        "left_out": "prompts left out",
        "too_long": "of them too long",
        "steps": "optimiser steps",
        "tokens": "response tokens trained",
    }
    rows = [(name, tuple(result[key] for key in keys)) for name, result in found]
    columns = tuple(keys.values())
    return Table(title="Training", columns=columns, rows=rows)


def _agreement(run: Run) -> Table:
    keys = {
        "num_examples": "answers of the teacher",
        "num_too_long": "of them too long",
        "num_own_too_long": "own answers too long",
    }
    found = [(one.label, tuple(one.agreement.get(key) for key in keys)) for one in run.evaluations]
    rows = [(label, counts) for label, counts in found if any(counts[1:])]
    return Table(title="Agreement with the teacher", columns=tuple(keys.values()), rows=rows)


def _evaluations(run: Run) -> Table:
    found = [
        (f"{one.label}: {result.task}", _evaluation(result))
        for one in run.evaluations
        for result in one.results
    ]
    names = dict.fromkeys(name for _, counts in found for name in counts)
    # Each metric counts the answers that it could not parse; most never do.
    is_shown = {name: name[0] != "unparsed" or any(counts.get(name) for _, counts in found) for name in names}
    columns = [name for name in names if is_shown[name]]
    rows = [(label, [counts.get(name) for name in columns]) for label, counts in found]
    return Table(title="Evaluation", columns=[": ".join(name) for name in columns], rows=rows)


def _evaluation(result: Numbers) -> dict[tuple[str, ...], int]:
    """Return the counts of one result by the words of their columns."""
    counts, provenance = result.counts, result.provenance
    unparsed = {name: count for name, count in counts.items() if name.startswith("unparsed_")}
    return {
        ("questions",): counts["examples"],
        ("beyond the limit",): provenance.data_counts.get("beyond_limit", 0),
        ("clusters",): counts["clusters"],
        ("too long",): provenance.responses.get("overlong", 0),
        ("no response",): counts["no_response"],
        ("empty",): counts["empty"],
        ("cut at the limit",): counts["truncated"],
        **{("unparsed", name.removeprefix("unparsed_")): count for name, count in unparsed.items()},
    }
