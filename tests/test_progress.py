import pytest

from vlm_distill.progress import duration, progress


def test_progress_yields_every_item_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter("abc"), label="letters")) == ["a", "b", "c"]


def test_lines_without_a_terminal_give_count_total_and_remaining_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    list(progress([1, 2, 3], label="reading", interval=0.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("reading: 1 of 3 (")
    assert lines[0].endswith(" left")
    assert lines[-1].startswith("reading: 3 done in 0 s")


def test_an_unknown_total_gives_no_remaining_time(capsys: pytest.CaptureFixture[str]) -> None:
    list(progress(iter([1, 2]), label="reading", interval=0.0))
    assert "left" not in capsys.readouterr().err


def test_a_short_loop_prints_one_line_to_stderr_and_none_to_stdout(
    capsys: pytest.CaptureFixture[str],
) -> None:
    list(progress(range(1000), label="reading"))
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_an_empty_loop_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    list(progress([], label="reading"))
    assert capsys.readouterr().err.startswith("reading: 0 done")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (61.0, "1 min 01 s"), (3600.0, "1 h 00 min"), (7500.0, "2 h 05 min")],
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
