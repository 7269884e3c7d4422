"""Pictures for models that read text only: refused before anything is written, with how many there are."""

import json
from pathlib import Path

import pytest

from tests.commands import error_of, run
from tests.tiny import tiny_llava, tiny_text_model
from tests.tiny_run import write_run
from vlm_distill.cli import main
from vlm_distill.models.save import save_model

PAIRS = {"teacher": ("text", "llava"), "student": ("llava", "text")}


def write_pair(folder: Path, teacher: str, student: str, **changes: object) -> Path:
    save_model(tiny_text_model(0), folder / "text")
    save_model(tiny_llava(0), folder / "llava")
    models = {
        "teacher": {"model": str(folder / teacher)},
        "student": {"model": str(folder / student)},
    }
    return write_run(folder, **models, warmup=None, **changes)


def without_pictures(folder: Path, name: str, *, num_kept: int = 0) -> None:
    """Take the pictures out of a table of `write_run`, but for the first rows."""
    path = folder / f"{name}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row if i < num_kept else {**row, "image": None} for i, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for written in (folder / "recipe.yaml", folder / "task.yaml"):
        written.write_text(written.read_text().replace("image: image", "image: image?"))


@pytest.mark.parametrize(("role", "pair"), PAIRS.items(), ids=PAIRS)
@pytest.mark.parametrize("verb", ["check", "run"])
def test_pictures_for_a_text_model_are_refused_with_their_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], role: str, pair: tuple[str, str], verb: str
) -> None:
    config = write_pair(tmp_path, *pair)
    line = error_of(capsys, main([verb, str(config)]))
    assert f"text: the {role} reads text only: 24 of 24 prompts have images" in line
    assert not (tmp_path / "run").exists()


def test_some_pictures_are_refused_and_left_out_where_bad_rows_are_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_pair(tmp_path, "text", "text", rounds=1, controls=[], evaluate={"agreement_tokens": 5})
    without_pictures(tmp_path, "train", num_kept=4)
    assert "4 of 24 prompts have images" in error_of(capsys, run(config))
    assert not (tmp_path / "run").exists()
    assert run(config, "data.overrides=[on_bad_row=skip]") == 0
    assert "training prompts are left out" in capsys.readouterr().err


def test_pictures_in_the_questions_of_a_task_are_refused_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_pair(tmp_path, "text", "text")
    without_pictures(tmp_path, "train")
    line = error_of(capsys, run(config))
    assert "10 of 10 questions of task tiny have images" in line
    evaluated = ["eval", str(tmp_path / "text"), "--suite", str(tmp_path / "suite.yaml")]
    line = error_of(capsys, main([*evaluated, "--output", str(tmp_path / "scored")]))
    assert "the model reads text only: 10 of 10 questions of task tiny have images" in line
    assert not (tmp_path / "scored").exists()
    without_pictures(tmp_path, "test")
    assert main(["check", str(config)]) == 0


def test_data_without_a_column_of_images_are_not_read_by_check(tmp_path: Path) -> None:
    config = write_pair(tmp_path, "text", "text", evaluate=None)
    recipe = (tmp_path / "recipe.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(recipe.replace("image: image", "context: image"))
    (tmp_path / "train.jsonl").unlink()
    assert main(["check", str(config)]) == 0
