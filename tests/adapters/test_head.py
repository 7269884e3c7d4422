"""Where the output layer of a model is, and what its family does to the logits behind it."""

import pytest

from tests.families import text
from tests.families.build import Build
from tests.families.llava_own_parts import nemotron_h_omni
from tests.families.muse_and_inkling import inkling_mm_model, muse_glimmer
from vlm_distill.adapters.catalog import IMAGE_TEXT
from vlm_distill.adapters.causal_lm import CAUSAL_LM
from vlm_distill.adapters.head import output_head, output_layer
from vlm_distill.conformance.checks import examine
from vlm_distill.models.load import wrap_model


def test_that_of_a_class_around_a_whole_language_model_is_found_in_it():
    model, processor = nemotron_h_omni()
    assert output_layer(model) is model.language_model.lm_head
    found = examine(wrap_model(IMAGE_TEXT, model, processor, path="nemotron"), ("head", "generated"))
    assert {finding.outcome for finding in found.values()} == {"passed"}


@pytest.mark.parametrize("family", ["inkling_text", "recurrent_gemma", "xlstm"])
def test_scales_and_soft_caps_are_known_by_the_names_of_their_families(family: str):
    model, tokenizer = text.FAMILIES[family]()
    head = output_head(model)
    assert (head.scale, head.soft_cap) != (1.0, None)
    found = examine(wrap_model(CAUSAL_LM, model, tokenizer, path=family), ("head",))
    assert found["head"].outcome == "passed", found["head"].line


@pytest.mark.parametrize("build", [muse_glimmer, inkling_mm_model])
def test_a_scale_is_applied_under_whatever_name_a_family_has_for_it(build: Build):
    found = examine(wrap_model(IMAGE_TEXT, *build(), path=build.__name__), ("head", "generated"))
    assert {finding.outcome for finding in found.values()} == {"passed"}
