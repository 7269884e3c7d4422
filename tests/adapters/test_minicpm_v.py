"""MiniCPM-V: patches are rows in a batch and lie side by side for the model."""

import pytest
import torch

from tests.families import packed_like
from vlm_distill.adapters.catalog import find_adapter
from vlm_distill.conformance.oracle import own_inputs
from vlm_distill.conformance.probes import probe_of, response_batch
from vlm_distill.forward import unshared_hidden
from vlm_distill.models.load import wrap_model


@pytest.mark.parametrize("family", ["minicpmv4_6", "minicpmv4_7", "minicpm_ocr"])
def test_the_model_gets_the_patches_of_a_batch_as_its_processor_makes_those_of_a_prompt(family: str):
    probe = probe_of(wrap_model(find_adapter(family), *packed_like.FAMILIES[family](), path=family))
    made = [own_inputs(probe, row) for row in range(3)]
    patches = [int(inputs["target_sizes"].prod(dim=1).sum()) for inputs in (made[0], made[2])]
    assert probe.prompts.extra_counts["pixel_values"] == (patches[0], 0, patches[1])
    seen: list[torch.Tensor] = []
    probe.loaded.model.base_model.vision_tower.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]),
        with_kwargs=True,
    )
    with torch.no_grad():
        unshared_hidden(probe.loaded, probe.prompts, response_batch(probe, [(0, [70]), (2, [71])]))
    expected = torch.cat([inputs["pixel_values"] for inputs in (made[0], made[2])], dim=-1)
    assert torch.equal(seen[0], expected)
