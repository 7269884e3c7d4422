"""HunYuan-VL: what is numbered over a whole batch by its model is numbered row by row."""

import torch

from tests.families.packed_like import hunyuan_vl
from vlm_distill.adapters.hunyuan_vl import HUNYUAN_VL, positions_alone
from vlm_distill.conformance.oracle import own_inputs
from vlm_distill.conformance.probes import probe_of
from vlm_distill.models.load import wrap_model


def test_positions_in_a_batch_are_those_of_the_model_for_a_prompt_alone():
    probe = probe_of(wrap_model(HUNYUAN_VL, *hunyuan_vl(), path="tiny-hunyuan"))
    model, prompts = probe.loaded.model, probe.prompts
    extras = {**prompts.extras, **prompts.token_extras}
    found = positions_alone(model, prompts.input_ids, prompts.attention_mask, extras)
    for row in range(3):
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw")
        inputs = {name: value for name, value in own_inputs(probe, row).items() if name in names}
        [expected] = model.base_model.get_rope_index(**inputs)[0].unbind(dim=1)
        assert torch.equal(found[:, row, -expected.shape[1] :], expected)
