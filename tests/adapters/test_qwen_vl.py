"""What is special about Qwen-VL: rows of pixels, grids, positions on three axes, padded output layers."""

import pytest
import torch

from tests.tiny import fresh
from tests.tiny_qwen import FAMILIES, tiny_qwen
from vlm_distill.adapters.catalog import find_adapter
from vlm_distill.adapters.positions import own_positions
from vlm_distill.alignment.pair import pair_report
from vlm_distill.conformance.oracle import own_inputs
from vlm_distill.conformance.probes import probe_of, response_batch
from vlm_distill.forward import prefix_shared_hidden, unshared_hidden
from vlm_distill.losses import IdRange
from vlm_distill.models.lora import part_of

every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
def test_the_family_is_found_by_its_model_type(family: str):
    assert find_adapter(family).position_ids is own_positions


def test_rows_of_pixels_and_grids_are_counted_at_their_prompt_for_images_of_several_sizes():
    prompts = probe_of(tiny_qwen()).prompts
    # Four pixels a patch: 10 x 4, then 4 x 4 and 2 x 8 patches.
    assert prompts.extra_counts == {"pixel_values": (40, 0, 16 + 16), "image_grid_thw": (1, 0, 2)}
    assert prompts.extras["image_grid_thw"].tolist() == [[1, 4, 10], [1, 4, 4], [1, 8, 2]]


@every_family
def test_positions_are_those_of_the_model_behind_padding_and_go_on_in_the_response(family: str):
    probe = probe_of(tiny_qwen(family))
    model, prompts = probe.loaded.model, probe.prompts
    ids = torch.nn.functional.pad(prompts.input_ids, (0, 2), value=9)
    mask = torch.nn.functional.pad(prompts.attention_mask, (0, 2), value=1)
    positions = own_positions(model, ids, mask, prompts.extras)
    for row in range(3):
        inputs = own_inputs(probe, row)
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw")
        own = model.base_model.get_rope_index(**{n: inputs[n] for n in names if n in inputs})[0][:, 0]
        length = own.shape[1]
        found = positions[:, row][:, mask[row].bool()]
        assert torch.equal(found[:, :length], own)
        last = int(own[0, -1])
        assert found[:, length:].tolist() == [[last + 1, last + 2]] * 3
    # The wide image is 5 x 2 tokens and moves the text behind it by 5 positions only.
    assert int(positions[0, 0, -1]) == int(mask[0].sum()) - 1 - (10 - 5)


@every_family
def test_a_forward_leaves_nothing_that_the_models_own_generate_would_read(family: str):
    loaded = fresh(tiny_qwen(family))
    loaded.model.base_model.rope_deltas = None
    probe = probe_of(loaded)
    with torch.no_grad():
        for forward in (unshared_hidden, prefix_shared_hidden):
            forward(loaded, probe.prompts, response_batch(probe, probe.pairs))
    assert loaded.model.base_model.rope_deltas is None


@every_family
def test_the_merger_is_the_projector(family: str):
    names = [name for name, _ in tiny_qwen(family).model.named_parameters()]
    merging = {name for name in names if "merger" in name}
    assert merging == {
        name for name in names if part_of(name, tiny_qwen(family).adapter.parts) == "projector"
    }


def test_a_pair_with_output_layers_of_two_widths_shares_the_ids_below_the_image_tokens():
    # Qwen2.5-VL pads 151,665 tokens to 152,064 rows in the 7B model and to 151,936 in the 3B one.
    report = pair_report(tiny_qwen(vocab_size=288), tiny_qwen(seed=1, vocab_size=272))
    assert report.alignment.student == IdRange(stop=264)
    image_pad = tiny_qwen().image_token_ids[0]
    assert report.alignment.student_suppressed == (image_pad, *range(264, 288))
    # 640 x 480 is brought below 1024 pixels.
    assert report.teacher.num_image_tokens == report.student.num_image_tokens > 0
