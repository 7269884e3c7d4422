"""Folders that are in use, and what killed processes have left in them."""

from pathlib import Path

import pytest
from filelock import FileLock

from tests.commands import error_of
from tests.whole_runs import Copy
from vlm_distill.cli import main
from vlm_distill.errors import DataError
from vlm_distill.runs.folder import hold, read_config


def held(folder: Path) -> FileLock:
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".lock")


@pytest.mark.parametrize("lock", ["scores", "run"])
def test_an_evaluation_waits_for_no_other_in_its_folder_or_in_the_run_around_it(
    finished: Path, copy: Copy, capsys: pytest.CaptureFixture[str], lock: str
) -> None:
    run = copy(finished)
    scores = run / "scores"
    model, suite = str(run / "round_2" / "model"), str(finished.parent / "suite.yaml")
    before = sorted(run.rglob("*"))
    with held({"scores": scores, "run": run}[lock]):
        line = error_of(
            capsys,
            main(["eval", model, "--suite", suite, "--output", str(scores), "--device", "cpu"]),
        )
    assert "another process is running here; wait for it or give another `output`" in line
    assert [path for path in sorted(run.rglob("*")) if path not in before and path.name != ".lock"] in (
        [],
        [scores],
    )


@pytest.mark.parametrize("place", [".", "eval", "eval/round_2", "eval/round_2/tiny", "round_1/scores"])
def test_an_evaluation_replaces_no_results_of_a_run(
    finished: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != ".lock"}
    model, suite = str(finished / "round_1" / "model"), str(finished.parent / "suite.yaml")
    out = ["--output", str(finished / place), "--device", "cpu"]
    line = error_of(capsys, main(["eval", model, "--suite", suite, *out]))
    assert f"{finished / place}: is where the run {finished} keeps results of its own" in line
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_an_evaluation_leaves_the_files_of_jobs_below_its_folder(tmp_path: Path) -> None:
    writes = tmp_path / "another" / ".results.json.123.tmp"
    with held(writes.parent):
        writes.touch()
        with hold(tmp_path):
            assert writes.exists()
    with hold(writes.parent):
        assert not writes.exists()


def test_two_exports_to_one_folder_are_refused_and_what_a_killed_one_left_is_removed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, place = tmp_path / "out", tmp_path / ".out.export.tmp"
    with held(place):
        line = error_of(capsys, main(["export", str(finished), str(target)]))
    assert f"{target}: another process is running here" in line
    (place / "model").mkdir()
    (place / "model" / "half").touch()
    assert main(["export", str(finished), str(target)]) == 0
    assert not (target / "half").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_evaluation_left_is_removed_under_the_lock(tmp_path: Path) -> None:
    mine, of_others = tmp_path / "tiny" / ".results.json.123.tmp", tmp_path / ".notes.tmp"
    mine.parent.mkdir()
    mine.touch()
    of_others.touch()
    with hold(tmp_path):
        assert not mine.exists()
    assert of_others.exists()


@pytest.mark.parametrize("damage", [lambda text: text[:-9], lambda text: text.replace("seed: 0", "seed: 1")])
def test_a_config_that_changed_after_it_was_written_is_one_line(
    finished: Path, copy: Copy, damage: object
) -> None:
    run = copy(finished)
    assert read_config(run)["name"] == "tiny"
    (run / "config.yaml").write_text(damage((run / "config.yaml").read_text()))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"config\.yaml: damaged .*; delete it and start the run again"):
        read_config(run)
