"""The family is held to what `vlm-distill check-adapter` holds a model to."""

from my_family.tiny import tiny

from vlm_distill.conformance.checks import examine


def test_the_family_passes_every_check() -> None:
    found = examine(tiny())
    assert {name: one.line for name, one in found.items() if one.outcome == "failed"} == {}
