"""Prompts that the processor of a model refuses: they end a run by name, or are left out and counted."""

import json
from pathlib import Path

import pytest

from tests.commands import error_of, run
from tests.tiny_run import QUESTIONS, write_run
from vlm_distill.reporting import write_report

# As of a model that was trained without them.
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
)
SKIP = 'data.overrides=["on_bad_row=skip"]'


def write(folder: Path, *, every: int = 4, **changes: object) -> Path:
    """Write a run whose teacher refuses system messages, which every so many rows have."""
    config = write_run(folder, controls=[], rounds=1, **changes)
    template = folder / "teacher" / "chat_template.jinja"
    template.write_text(NO_SYSTEM + template.read_text())
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        system = [{"role": "system", "content": "Be brief."}] if number % every == 0 else []
        row["m"] = [*system, {"role": "user", "content": row["q"]}]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(recipe.replace("question: q", "messages: m"))
    return config


def test_a_prompt_that_a_model_refuses_ends_the_run_by_the_name_of_its_example(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = error_of(capsys, run(write(tmp_path)))
    assert "example train-blue-0: its turns (system, user) cannot be encoded: " in error
    assert (
        "System role not supported; change the example, leave such ones out (data.overrides=[on_bad_" in error
    )


def test_where_bad_rows_are_skipped_such_a_prompt_is_left_out_of_every_stage_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write(tmp_path), SKIP) == 0
    log = capsys.readouterr().err
    counts = json.loads((tmp_path / "run" / "provenance.json").read_text())["unreadable_prompts"]
    # One question in four of 12 pictures with two each.
    assert (sum(counts.values()), set(counts)) == (6, {"training", "held-out"})
    assert (
        f"{counts['training']} training prompts are left out: {tmp_path / 'teacher'} cannot read them: "
        in log
    )
    assert (
        f"data: {18 - counts['training']} prompts to train on, {6 - counts['held-out']} to compare on" in log
    )
    assert "training prompts left out: a model cannot read them" in write_report(tmp_path / "run").read_text()


def test_where_a_model_refuses_every_prompt_its_refusal_is_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "System role not supported" in error_of(capsys, run(write(tmp_path, every=1), SKIP))


def test_where_bad_rows_are_skipped_training_on_labels_leaves_out_prompts_without_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = {"objective": {"kind": "sft"}, "train": {"steps": 2, "batch_size": 4, "learning_rate": 1e-3}}
    config = write_run(
        tmp_path, warmup=labels, rounds=0, controls=[], evaluate=None, objective=None, train=None
    )
    text = (tmp_path / "train.jsonl").read_text().replace('"a": "no"', '"a": null')
    (tmp_path / "train.jsonl").write_text(text)
    recipe = (tmp_path / "recipe.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(recipe.replace("references: a", "references: a?"))
    assert "leave these out with data.overrides=[on_bad_row=skip]" in error_of(capsys, run(config))
    assert run(config, SKIP) == 0
    assert QUESTIONS[1] in text
    assert json.loads((tmp_path / "run" / "warmup" / "stage.json").read_text())["left_out"] == 9
