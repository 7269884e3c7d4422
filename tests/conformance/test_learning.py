"""What a step reaches, where a component has no gradient."""

from tests.families.llava_own_parts import apertus1p5
from vlm_distill.adapters.catalog import find_adapter
from vlm_distill.conformance.checks import examine
from vlm_distill.models.load import wrap_model


def test_a_tower_that_makes_tokens_of_a_codebook_is_reached_by_nobody():
    model, processor = apertus1p5()
    loaded = wrap_model(find_adapter("apertus1p5"), model, processor, path="apertus")
    found = examine(loaded, ("learning", "pictures"))
    assert {name: finding.outcome for name, finding in found.items()} == {
        "learning": "passed",
        "pictures": "passed",
    }
