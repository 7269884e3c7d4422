"""What is measured of a model makes its family pass, and says so."""

from dataclasses import replace

import pytest

from tests.families.text import FAMILIES
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.catalog import find_adapter
from vlm_distill.conformance.checks import examine
from vlm_distill.conformance.facts import measure
from vlm_distill.models.load import wrap_model

READ_BY_PADDING = ("generated", "plain", "boundary", "padding", "mixed", "greedy", "sampled", "trained")


def tiny(family: str) -> LoadedModel:
    model, tokenizer = FAMILIES[family]()
    return wrap_model(find_adapter(model.config.model_type), model, tokenizer, path=family)


# Positions by place; a bias that a convolution reads; groups of keys by place.
@pytest.mark.parametrize("family", ["llama4_text", "mamba_biased", "minimax_m3_vl_text"])
def test_a_family_that_left_padding_reaches_passes_with_padding_behind_its_tokens(family: str) -> None:
    loaded = tiny(family)
    facts = measure(loaded)
    assert not facts.left_padding
    assert "one at a time" in facts.lines["padding"]
    settled = replace(loaded, adapter=facts.settled(loaded.adapter))
    found = examine(settled, READ_BY_PADDING)
    assert {name: one.line for name, one in found.items() if one.outcome != "passed"} == {}


def test_a_family_that_masks_padding_keeps_it_on_the_left() -> None:
    assert measure(tiny("llama")).left_padding
