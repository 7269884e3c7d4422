"""Molmo 2: a token pools patches of its own picture, whatever stands before it in a batch."""

from tests.families.recent_image_text import molmo2
from vlm_distill.adapters.catalog import find_adapter
from vlm_distill.conformance.checks import examine
from vlm_distill.models.load import wrap_model


def test_batches_and_caches_give_what_generate_gives_for_each_prompt() -> None:
    loaded = wrap_model(find_adapter("molmo2"), *molmo2(), path="molmo2")
    assert {name: one.line for name, one in examine(loaded).items() if one.outcome == "failed"} == {}
