import pytest
import torch

from tests.tiny import VISION, tiny_llava
from vlm_distill.errors import AdapterError
from vlm_distill.students.vision_tower import CopiedTower, CustomTower, OpenClipTower, build_tower


def test_a_tower_from_scratch_has_the_sizes_of_its_config():
    config = build_tower(CustomTower(**VISION), teacher=None).model.config
    assert (config.image_size, config.patch_size, config.hidden_size) == (16, 8, 16)
    assert (config.num_hidden_layers, config.num_attention_heads, config.intermediate_size) == (2, 2, 32)


@pytest.mark.parametrize("wrong", [{"patch_size": 5}, {"heads": 3}])
def test_sizes_that_do_not_divide_are_refused(wrong):
    with pytest.raises(AdapterError, match="must be a multiple of"):
        build_tower(CustomTower(**{**VISION, **wrong}), teacher=None)


def test_a_name_that_open_clip_does_not_know_gets_the_nearest_one():
    with pytest.raises(AdapterError, match="'ViT-B32' is no model of open_clip; did you mean 'ViT-B-32'"):
        build_tower(OpenClipTower(name="ViT-B32"), teacher=None)


def test_a_weights_tag_that_open_clip_does_not_know_gets_the_known_ones():
    with pytest.raises(AdapterError, match=r"'laion' is no weights tag of ViT-B-32; .*laion2b_s34b_b79k"):
        build_tower(OpenClipTower(name="ViT-B-32", pretrained="laion"), teacher=None)


def test_a_copied_tower_starts_in_eval_mode_and_can_be_trained():
    teacher = tiny_llava()
    tower = build_tower(CopiedTower.model_validate({"from": "teacher"}), teacher=teacher)
    assert not tower.model.training
    assert all(parameter.requires_grad for parameter in tower.model.parameters())
    with torch.no_grad():
        next(tower.model.parameters()).add_(1.0)
    theirs = next(teacher.model.model.vision_tower.parameters())
    assert not torch.equal(theirs, next(tower.model.parameters()))
