"""`vlm-distill check-adapter`: a table, a document for programs, and exit codes."""

import json
from pathlib import Path

import pytest

from tests.commands import error_of
from tests.tiny import tiny_llava
from tests.tiny_families import tiny_bert
from vlm_distill.cli import main
from vlm_distill.conformance.checks import CHECKS
from vlm_distill.models.save import save_model


def test_the_table_has_a_line_for_every_check_and_the_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tiny_llava(), tmp_path / "model")
    assert main(["check-adapter", str(tmp_path / "model")]) == 0
    printed = capsys.readouterr()
    rows = [line.split()[0] for line in printed.out.splitlines() if "passed" in line or "apply" in line]
    assert set(CHECKS) <= {*rows}
    assert "weights: generated" in printed.out
    assert "prefix sharing: measured, exact" in printed.out
    assert f"{len(CHECKS)} checks of its structure" in printed.err


def test_a_model_that_fails_ends_with_1_and_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tiny_bert(), tmp_path / "bert")
    assert main(["check-adapter", str(tmp_path / "bert"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["findings"]["causal"]["outcome"] == "failed"
    assert "choose a causal one" in found["findings"]["causal"]["remedy"]
    assert found["is_generic"]


def test_a_name_that_means_nothing_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such folder" in error_of(capsys, main(["check-adapter", "/nowhere/at/all"]))
