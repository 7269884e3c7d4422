"""Every state file of a finished run, damaged in every way, under every verb: one line, or healed."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.commands import error_of, run
from tests.whole_runs import Copy, config_of
from vlm_distill.cli import main

Damage = Callable[[Path], object]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 4
    path.write_bytes(data)


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Damage] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "another shape": lambda path: path.write_text("[1]"),
    "no keys": lambda path: path.write_text("{}"),
    "flipped": _flip,
    "binary": lambda path: path.write_bytes(bytes(range(256))),
    "deep": lambda path: path.write_text("[" * 100_000),
    "a folder": _make_folder,
}
# What a run says of itself, once of each kind; `*.json` that belong to a model are covered by their hashes.
FILES = (
    "config.yaml",
    "stages.json",
    "provenance.json",
    "summary.json",
    "student_at_start.json",
    "student_at_start.files.json",
    "student_at_start/config.json",
    "student_at_start/model.safetensors",
    "data/manifest.json",
    "data/train.jsonl",
    "data/held_out.jsonl",
    "responses/teacher/manifest.json",
    "responses/teacher/counts.json",
    "responses/teacher/dropped.json",
    "responses/teacher/responses-00000.parquet",
    "held_out/teacher/manifest.json",
    "cache/teacher/rank_0/manifest.json",
    "cache/teacher/rank_0/rows-00000.safetensors",
    "cache/round_1.json",
    "warmup/stage.json",
    "round_1/stage.json",
    "round_2/metrics.jsonl",
    "round_2/model.files.json",
    "round_2/model/tokenizer.json",
    "round_2/model/model.safetensors",
    "eval/round_1/agreement.json",
    "eval/round_1/tiny/results.json",
    "eval/round_1/tiny/samples.jsonl",
    "eval/round_1/held_out/manifest.json",
)

READ_BY_REPORT = {
    "config.yaml",
    "stages.json",
    "provenance.json",
    "summary.json",
    "data/manifest.json",
    "data/held_out.jsonl",
    "responses/teacher/manifest.json",
    "responses/teacher/counts.json",
    "responses/teacher/responses-00000.parquet",
    "held_out/teacher/manifest.json",
    "warmup/stage.json",
    "round_1/stage.json",
    "eval/round_1/agreement.json",
    "eval/round_1/tiny/results.json",
}
# The card tells of all that trained and of what was measured, not of answers.
READ_BY_EXPORT = {
    *READ_BY_REPORT.difference(
        (
            "data/held_out.jsonl",
            "responses/teacher/manifest.json",
            "responses/teacher/responses-00000.parquet",
            "held_out/teacher/manifest.json",
        )
    ),
    "round_2/model.files.json",
    "round_2/model/tokenizer.json",
    "round_2/model/model.safetensors",
}
# A line of a log that is none is said and left out; a log that is no file cannot be read.
LOG = "round_2/metrics.jsonl"


def how_of(number: int) -> str:
    """Return how a file is damaged where each is damaged in one way."""
    return [*DAMAGES][number % len(DAMAGES)]


@pytest.fixture(scope="module")
def reread(cached: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy whose files a test damages and puts back."""
    return Path(shutil.copytree(cached, tmp_path_factory.mktemp("reread") / "run"))


@pytest.fixture
def damaged(reread: Path) -> Iterator[Callable[[str, str], Path]]:
    kept: dict[Path, bytes] = {}

    def damage(name: str, how: str) -> Path:
        path = reread / name
        kept[path] = path.read_bytes()
        DAMAGES[how](path)
        return path

    yield damage
    for path, content in kept.items():
        if path.is_dir():
            path.rmdir()
        path.write_bytes(content)


def check(code: int, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Check that a command that stopped named the file and what to do about it."""
    if code != 0:
        line = error_of(capsys, code)
        assert str(path) in line
        assert ";" in line
    capsys.readouterr()


def is_read(name: str, how: str, known: set[str]) -> bool:
    return name in known or (name == LOG and how == "a folder")


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_report_of_a_damaged_run_is_one_line_with_the_file(
    damaged: Callable[[str, str], Path], reread: Path, capsys: pytest.CaptureFixture[str], name: str, how: str
) -> None:
    path = damaged(name, how)
    code = main(["report", str(reread)])
    assert code == (2 if is_read(name, how, READ_BY_REPORT) else 0)
    check(code, path, capsys)


@pytest.mark.parametrize("number", range(len(FILES)), ids=FILES)
def test_an_export_of_a_damaged_run_is_one_line_with_the_file(
    damaged: Callable[[str, str], Path],
    reread: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    name, how = FILES[number], how_of(number)
    path, target = damaged(name, how), tmp_path / "out"
    code = main(["export", str(reread), str(target)])
    assert code == (2 if is_read(name, how, READ_BY_EXPORT) else 0)
    assert target.exists() == (code == 0)
    check(code, path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(FILES)), ids=FILES)
def test_a_run_that_finds_a_damaged_file_stops_with_one_line_or_mends_it(
    finished: Path, cached: Path, copy: Copy, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    folder = copy(cached)
    path = folder / FILES[number]
    summary = (folder / "summary.json").read_text()
    DAMAGES[how_of(number)](path)
    code = run(config_of(finished), "cache.tier=hidden", f"output={folder}")
    assert code == 2 or (folder / "summary.json").read_text() == summary
    check(code, path, capsys)
