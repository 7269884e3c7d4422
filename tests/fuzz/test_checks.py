"""The checks of the fuzz test tell what they are there for."""

import json
import os
from pathlib import Path

import pytest

from tests.fuzz.case import Case
from tests.fuzz.checks import other_results, uncounted_rows, written_elsewhere, wrong_ending
from tests.fuzz.command import Outcome, call
from tests.fuzz.writes import Recorder, changes, looks

LINE = "vlm-distill: error: x\n"


def outcome(code: int | None, printed: str = "", exception: str = "") -> Outcome:
    return Outcome(code=code, printed=printed, place="", exception=exception)


@pytest.mark.parametrize(
    "good", [outcome(0, "done\n"), outcome(2, f"reading\n{LINE}"), outcome(130), outcome(143)]
)
def test_an_end_that_is_promised_is_no_problem(good: Outcome) -> None:
    assert not list(wrong_ending(good))


@pytest.mark.parametrize(
    ("bad", "sort"),
    [
        (outcome(None, exception="KeyError: 1"), "traceback"),
        (outcome(1), "exit code"),
        (outcome(2), "error lines"),
        (outcome(2, LINE * 2), "error lines"),
        (outcome(0, LINE), "error lines"),
        (outcome(2, f"Traceback (most recent call last):\n{LINE}"), "printed traceback"),
    ],
)
def test_another_end_is_a_problem(bad: Outcome, sort: str) -> None:
    assert [problem.sort for problem in wrong_ending(bad)] == [sort]


def test_what_a_command_prints_and_how_it_ends_is_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with capfd.disabled():
        refused = call(["check", "nothing.yaml"], tmp_path / "log")
        unknown = call(["nothing"], tmp_path / "other")
    assert refused.code == 2
    assert not list(wrong_ending(refused))
    assert unknown.code == 2
    assert "invalid choice" in unknown.printed


def test_writing_elsewhere_is_a_problem(tmp_path: Path) -> None:
    recorder, output = Recorder(), tmp_path / "out"
    with recorder.recording() as written:
        (output / "x").mkdir(parents=True)
        (output / "x" / "inside").write_text("")
        (tmp_path / ".out.123.tmp").write_text("")
        (tmp_path / "outside").write_text("")
        (tmp_path / "outside").unlink()
        os.rename(output / "x" / "inside", tmp_path / "moved")
    [problem] = written_elsewhere(written, ["changed"], (output,))
    assert problem.detail == f"3 paths: {tmp_path / 'moved'}, {tmp_path / 'outside'}, changed"
    assert not list(written_elsewhere(written, [], (tmp_path,)))


def test_a_change_of_a_file_is_seen_and_that_of_an_output_is_not(tmp_path: Path) -> None:
    for name in ("out", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("before")
    before = looks(tmp_path, without=("out",))
    (tmp_path / "out" / "file").write_text("after")
    assert not changes(before, looks(tmp_path, without=("out",)))
    (tmp_path / "mine" / "file").write_text("after")
    (tmp_path / "mine" / "new").symlink_to("file")
    assert changes(before, looks(tmp_path, without=("out",))) == ["mine/file", "mine/new"]


GOOD = {"read": 3, "duplicates": 1, "train": 1, "held_out": 1, "train_images": 1, "without_references": 1}
ANSWERED = {"checksum": "0", "prompts": 1, "stop": 1, "overlong": 0}


@pytest.mark.parametrize(
    ("counts", "answered", "sorts"),
    [
        ({**GOOD, "one source/read": 3}, ANSWERED, []),
        ({**GOOD, "duplicates": 0}, ANSWERED, ["row without a count"]),
        ({**GOOD, "read": 2, "duplicates": 0}, ANSWERED, ["row not read"]),
        ({**GOOD, "held_out": 2, "duplicates": 0}, ANSWERED, ["row without a count"]),
        (GOOD, {**ANSWERED, "stop": 0}, ["row without a count"]),
        (GOOD, {**ANSWERED, "prompts": 2, "overlong": 1}, ["row without a count"]),
    ],
)
def test_a_row_without_a_count_is_a_problem(
    counts: dict[str, int], answered: dict[str, object], sorts: list[str], tmp_path: Path
) -> None:
    for name, values in (("data/manifest", {"counts": counts}), ("responses/teacher/counts", answered)):
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    for part in ("train", "held_out"):
        (tmp_path / "data" / f"{part}.jsonl").write_text("{}\n")
    found = uncounted_rows(Case(commands=(), rows=3), tmp_path)
    assert [problem.sort for problem in found] == sorts


@pytest.mark.parametrize(("score", "sorts"), [(1.0, []), (0.5, ["other results"])])
def test_results_that_are_not_those_of_before_are_a_problem(
    score: float, sorts: list[str], tmp_path: Path
) -> None:
    for name, value in (("now", score), ("before", 1.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps({"rows": [value]}))
    case = Case(commands=(), summary="summary.json")
    assert [one.sort for one in other_results(case, tmp_path / "now", tmp_path / "before")] == sorts
