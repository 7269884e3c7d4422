"""The family is held to what `vlm-distill check-adapter` holds a model to."""

from pathlib import Path

from my_family.tiny import write

from vlm_distill.conformance.checks import examine
from vlm_distill.models.load import load_model


def test_the_family_passes_every_check(tmp_path: Path) -> None:
    write(tmp_path)
    found = examine(load_model(str(tmp_path)))
    assert {name: one.line for name, one in found.items() if one.outcome == "failed"} == {}
