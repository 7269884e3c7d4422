"""Which way responses go through a model's body; that all ways give the same is asked of each family."""

import copy
from dataclasses import replace

import pytest
import torch

from tests.families.every import load_family
from tests.families.recent_image_text import molmo2
from tests.families.seen_both_ways import paligemma
from tests.prompts import RESPONSES, prompts_of, responses_of
from tests.tiny import fresh, tiny_llava, tiny_text_model
from vlm_distill.conformance.logits import forward_logits, one_sequence, prefix_shared
from vlm_distill.conformance.oracle import all_forced_logits
from vlm_distill.conformance.probes import LENGTHS, probe_of
from vlm_distill.forward import (
    prefix_shared_hidden,
    response_hidden,
    single_forward_hidden,
    unshared_hidden,
)
from vlm_distill.models.block_mask import takes_block_mask


@pytest.mark.parametrize("function", [unshared_hidden, prefix_shared_hidden, single_forward_hidden])
def test_responses_without_tokens_have_no_rows(function):
    loaded, pairs = tiny_llava(), [(0, []), (0, []), (1, []), (2, [])]
    assert function(loaded, prompts_of(loaded), responses_of(pairs)).shape == (0, 16)


ONE_TOKEN, REORDERED = ((0, 1), (1, 1), (0, 1)), LENGTHS[::-1]


@pytest.mark.parametrize(
    ("check", "lengths", "attention"),
    [
        (prefix_shared, ONE_TOKEN, "sdpa"),
        (prefix_shared, REORDERED, "sdpa"),
        (one_sequence, LENGTHS, "eager"),
        (one_sequence, ONE_TOKEN, "sdpa"),
        (one_sequence, REORDERED, "eager"),
    ],
)
@pytest.mark.parametrize("build", [tiny_text_model, tiny_llava])
def test_a_shared_prefix_gives_the_logits_and_gradients_of_separate_forwards(
    build, check, lengths, attention
):
    loaded = fresh(build())
    loaded.model.set_attn_implementation(attention)
    found = check(probe_of(loaded, lengths=lengths))
    assert found.outcome == "passed", found.line


# The second are continued by one token only, which goes another way through a recurrent layer.
@pytest.mark.parametrize("lengths", [LENGTHS, ((0, 2), (0, 2), (1, 1), (2, 2))])
@pytest.mark.parametrize("family", ["qwen3_5", "mamba2", "falcon_h1"])
def test_a_shared_prefix_with_recurrent_states_gives_gradients_of_separate_forwards(family, lengths):
    found = prefix_shared(probe_of(load_family(family), lengths=lengths))
    assert found.outcome == "passed", found.line


def test_a_response_may_hold_marks_of_sounds_and_images_that_it_brings_none_of():
    loaded = load_family("qwen3_omni_moe_thinker")
    sound, image = loaded.tokenizer.convert_tokens_to_ids(["<|audio_start|>", "<|vision_start|>"])
    probe = replace(probe_of(loaded), pairs=((0, (70, sound, 71)), (0, (72, image, 73)), (2, (image, 74))))
    # A plain forward of the model itself fails on them.
    with torch.no_grad():
        expected = all_forced_logits(probe, probe.pairs)
        for forward in (unshared_hidden, prefix_shared_hidden):
            assert torch.allclose(forward_logits(forward)(probe), expected, atol=1e-5)


def test_the_prefix_is_shared_only_where_prompts_have_several_responses(monkeypatch):
    loaded, calls = tiny_llava(), []
    real = loaded.adapter.backbone

    def count(model, input_ids, *rest):
        calls.append(len(input_ids))
        return real(model, input_ids, *rest)

    counted = replace(loaded, adapter=replace(loaded.adapter, backbone=count))
    with torch.no_grad():
        response_hidden(counted, prompts_of(loaded), responses_of(RESPONSES))
        response_hidden(counted, prompts_of(loaded), responses_of(RESPONSES[:3]))
        unable = replace(counted, adapter=replace(counted.adapter, supports_prefix_sharing=False))
        response_hidden(unable, prompts_of(loaded), responses_of(RESPONSES))
    assert calls == [3, 5, 3, 5]


@pytest.mark.parametrize(
    "settings",
    [
        {"sliding_window": 8},
        {"layer_types": ["sliding_attention", "full_attention"]},
        {"_attn_implementation": "flash_attention_2"},
    ],
)
def test_one_sequence_is_not_for_windows_and_other_kernels(settings):
    loaded = tiny_text_model()
    model = copy.deepcopy(loaded.model)
    for name, value in settings.items():
        setattr(model.config, name, value)
    assert takes_block_mask(loaded.model)
    assert not takes_block_mask(model)


@pytest.mark.parametrize("family", [paligemma, molmo2])
def test_one_sequence_is_not_for_prompts_that_are_seen_both_ways(family):
    assert not takes_block_mask(family()[0])
