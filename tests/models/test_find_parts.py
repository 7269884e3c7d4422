"""Components are read off the modules: those of a LLaVA are the ones that its record names."""

import pytest

from tests.families import packed_like
from tests.families.other_image_text import deepseek_vl_hybrid
from tests.families.recent_image_text import emu3
from tests.tiny import tiny_llava, tiny_text_model
from tests.tiny_qwen import FAMILIES, tiny_qwen
from vlm_distill.adapters.llava import LLAVA
from vlm_distill.models.parts import find_parts


def test_those_of_a_llava_are_found_without_its_record() -> None:
    assert {part: set(found) for part, found in find_parts(tiny_llava().model).items()} == {
        part: set(known) for part, known in LLAVA.parts.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_what_merges_patches_inside_a_tower_is_the_projector(family: str) -> None:
    found = find_parts(tiny_qwen(family).model)
    assert found["vision"] == ("model.visual.",)
    assert found["projector"][0] == "model.visual.merger."
    assert found["language"] == ("model.language_model.", "lm_head.")


@pytest.mark.parametrize(
    ("build", "inside"),
    [
        (packed_like.hunyuan_vl, {"model.vision_tower.patch_merger."}),
        (packed_like.qwen3_omni_moe_thinker, {"model.visual.merger.", "model.visual.merger_list."}),
    ],
)
def test_what_merges_patches_has_other_names_too(build, inside) -> None:
    assert set(find_parts(build()[0])["projector"]) == inside


def test_a_text_model_is_all_language() -> None:
    assert find_parts(tiny_text_model().model) == {"language": ("",)}


def test_a_second_tower_is_vision_and_no_projector() -> None:
    found = find_parts(deepseek_vl_hybrid()[0])
    assert {"model.vision_model.", "model.high_res_vision_model."} <= set(found["vision"])
    assert "model.aligner." in found["projector"]


def test_what_makes_tokens_of_pictures_is_vision() -> None:
    assert find_parts(emu3()[0]) == {
        "vision": ("model.vqmodel.",),
        "language": ("model.text_model.", "lm_head."),
    }
