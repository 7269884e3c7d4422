"""The command line as the tests call it."""

from pathlib import Path

import pytest

from vlm_distill.cli import main


def run(config: Path, *overrides: str) -> int:
    return main(["run", str(config), *overrides])


def error_of(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """Return the one line that a failed command printed last."""
    assert code == 2
    last = capsys.readouterr().err.rstrip("\n").splitlines()[-1]
    assert last.startswith("vlm-distill: error: ")
    return last
