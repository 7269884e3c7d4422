"""Families with an adapter of their own pass what the generic path fails."""

import pytest

from tests.families import llava_like, llava_own_parts, other_image_text, recent_image_text
from tests.families.build import Build
from vlm_distill.adapters.adapter import Adapter
from vlm_distill.adapters.catalog import IMAGE_TEXT, find_adapter
from vlm_distill.adapters.causal_lm import CAUSAL_LM
from vlm_distill.conformance.checks import examine
from vlm_distill.conformance.probes import probe_of
from vlm_distill.models.load import wrap_model


@pytest.mark.parametrize(
    ("build", "generic", "check"),
    [
        (llava_like.aya_vision, IMAGE_TEXT, "head"),
        (llava_like.cohere2_vision, IMAGE_TEXT, "generated"),
        (llava_like.perception_lm, IMAGE_TEXT, "plain"),
        (llava_own_parts.hyperclovax_vision_v2, IMAGE_TEXT, "head"),
        (llava_own_parts.mistral4, CAUSAL_LM, "saved"),
        (other_image_text.mllama, IMAGE_TEXT, "generated"),
        (recent_image_text.molmo2, IMAGE_TEXT, "generated"),
        (recent_image_text.emu3, IMAGE_TEXT, "generated"),
    ],
)
def test_a_family_needs_its_adapter(build: Build, generic: Adapter, check: str):
    model, processor = build()
    outcomes = []
    for adapter in (find_adapter(model.config.model_type), generic):
        loaded = wrap_model(adapter, model, processor, path=build.__name__)
        outcomes.append(examine(loaded, [check])[check].outcome)
    assert outcomes == ["passed", "failed"]


def test_tiles_are_counted_at_their_prompt_however_many_there_are():
    model, processor = llava_like.perception_lm()
    loaded = wrap_model(find_adapter("perception_lm"), model, processor, path="perception_lm")
    # A thumbnail and 3 tiles, then two pictures of a thumbnail and 4 tiles each.
    assert probe_of(loaded).prompts.extra_counts == {"pixel_values": (4, 0, 10)}
