"""Data and models that change under a run: refused before the first write, unless nothing came of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import error_of, run
from tests.tiny import picture, tiny_llava
from tests.tiny_run import write_run
from vlm_distill.cli import main
from vlm_distill.models.save import save_model

STAGE = {"steps": 2, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3}


def write_small(folder: Path, **changes: object) -> Path:
    save_model(tiny_llava(0), folder / "small")
    settings = {"student": {"model": str(folder / "small")}, "warmup": None, "rounds": 1, "train": STAGE}
    return write_run(folder, **{**settings, "controls": [], "cache": {"tier": "hidden"}, **changes})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run's config; tests put back what they change in it."""
    folder = tmp_path_factory.mktemp("small")
    assert run(write_small(folder)) == 0
    return folder


def listing(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return time and content of every file, and the time of every folder."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (folder, *folder.rglob("*"))
    }


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# By the file that changes: how, and what the line names.
CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "teacher/model.safetensors": (flip, "the teacher"),
    "small/model.safetensors": (flip, "the student before training"),
    "small/tokenizer_config.json": (
        lambda path: path.write_text(path.read_text() + "\n"),
        "the student before training",
    ),
    "train.jsonl": (lambda path: replace(path, "red circle", "red square"), "the data (tiny)"),
    "images/train_red.png": (lambda path: picture("lime").save(path), "the data (tiny)"),
    "recipe.yaml": (lambda path: replace(path, "held_out: 0.25", "held_out: 0.5"), "the data (tiny)"),
}
VERBS = {"run": [], "cache": [], "run --stage": ["--stage", "round_1.evaluate"]}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_input_of_a_finished_run_is_refused_and_nothing_is_touched(
    small: Path, capsys: pytest.CaptureFixture[str], name: str, verb: str
) -> None:
    change, what = CHANGES[name]
    content, before = (small / name).read_bytes(), listing(small / "run")
    try:
        change(small / name)
        code = main([verb.partition(" ")[0], str(small / "config.yaml"), *VERBS[verb]])
    finally:
        (small / name).write_bytes(content)
    line = error_of(capsys, code)
    assert listing(small / "run") == before
    assert f"{small / 'run'}: {what}" in line
    assert ") since it was used by " in line
    assert "give the run another `output`, or delete the folder" in line


def test_files_with_another_time_and_the_same_content_are_no_change(small: Path, tmp_path: Path) -> None:
    summary = (small / "run" / "summary.json").read_text()
    for name in CHANGES:
        (small / name).touch()
    assert run(small / "config.yaml") == 0
    assert (small / "run" / "summary.json").read_text() == summary


def test_another_engine_is_no_change(small: Path) -> None:
    assert run(small / "config.yaml", "generate.engine={kind: vllm}") == 0


def test_what_nothing_was_made_from_yet_may_change(tmp_path: Path) -> None:
    config = write_small(tmp_path)
    assert run(config, "--stage", "data", "--stage", "student.prepare") == 0
    replace(tmp_path / "train.jsonl", "red circle", "red square")
    assert run(config, "--stage", "data") == 0
    assert "red square" in (tmp_path / "run" / "data" / "train.jsonl").read_text()


def test_data_that_were_deleted_are_prepared_again_where_they_come_out_alike(small: Path) -> None:
    before = (small / "run" / "data" / "train.jsonl").read_bytes()
    shutil.rmtree(small / "run" / "data")
    assert run(small / "config.yaml") == 0
    assert (small / "run" / "data" / "train.jsonl").read_bytes() == before


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_flipped_bit_of_a_trained_student_is_one_line_wherever_it_is_loaded(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    model = Path(shutil.copytree(small / "run", tmp_path / "run")) / "round_1" / "model"
    flip(model / file)
    suite = str(small / "suite.yaml")
    for arguments in (
        ["run", str(small / "config.yaml"), f"output={tmp_path / 'run'}"],
        ["eval", str(model), "--suite", suite, "--output", str(tmp_path / "scores"), "--device", "cpu"],
        ["export", str(tmp_path / "run"), str(tmp_path / "out")],
        ["export", str(model), str(tmp_path / "out")],
    ):
        line = error_of(capsys, main(arguments))
        assert f"{model / file}: damaged (not what was written)" in line
        assert f"delete {model.parent} and start the run again" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lost", ["model", "model/config.json", "model/model.safetensors"])
def test_a_trained_student_that_was_deleted_is_one_line_with_the_folder_of_its_stage(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    copied = Path(shutil.copytree(small / "run", tmp_path / "run"))
    gone, stage = copied / "round_1" / lost, copied / "round_1"
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    for arguments in (
        ["run", str(small / "config.yaml"), f"output={copied}"],
        [
            "eval",
            str(stage / "model"),
            "--suite",
            str(small / "suite.yaml"),
            "--output",
            str(tmp_path / "out"),
        ],
        ["export", str(copied), str(tmp_path / "out")],
    ):
        line = error_of(capsys, main(arguments))
        assert str(gone) in line
        assert f"missing); delete {stage} and start the run again" in line or f"delete {stage} to" in line
    shutil.rmtree(stage)
    assert run(small / "config.yaml", f"output={copied}") == 0


def test_a_run_whose_plan_is_gone_writes_it_anew(small: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(small / "run", tmp_path / "run"))
    plan = (copied / "stages.json").read_bytes()
    (copied / "stages.json").unlink()
    assert run(small / "config.yaml", f"output={copied}") == 0
    assert (copied / "stages.json").read_bytes() == plan


def test_a_stage_that_is_deleted_is_trained_again_and_ends_alike(small: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(small / "run", tmp_path / "run"))
    shutil.rmtree(copied / "round_1")
    assert run(small / "config.yaml", f"output={copied}") == 0
    weights = [folder / "round_1" / "model" / "model.safetensors" for folder in (small / "run", copied)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_flipped_bit_of_a_student_made_of_parts_is_one_line_and_it_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_run(tmp_path, warmup=None, rounds=1, train=STAGE, controls=[], evaluate=None)
    assert run(config) == 0
    start = tmp_path / "run" / "student_at_start"
    weights = (start / "model.safetensors").read_bytes()
    flip(start / "model.safetensors")
    before = listing(tmp_path / "run")
    line = error_of(capsys, run(config))
    assert f"{start / 'model.safetensors'}: damaged" in line
    assert f"delete {start} and start the run again" in line
    assert listing(tmp_path / "run") == before
    shutil.rmtree(start)
    assert run(config) == 0
    assert (start / "model.safetensors").read_bytes() == weights


def test_responses_to_another_question_are_not_replaced(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = Path(shutil.copytree(small / "run", tmp_path / "run"))
    path = copied / "responses" / "student_round_1" / "manifest.json"
    values = json.loads(path.read_text())
    del values["checksum"]
    path.write_text(json.dumps({**values, "key": "of another student"}))
    line = error_of(capsys, run(small / "config.yaml", f"output={copied}"))
    assert "holds responses of another student or teacher" in line
    assert list(path.parent.glob("*.parquet"))
