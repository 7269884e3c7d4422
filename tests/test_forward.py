"""The separate forward against the plainest oracle: one unpadded sequence through the model at a time."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.prompts import IMAGES, PROMPTS, RESPONSES, prompts_of, responses_of
from tests.tiny import picture, tiny_llava, tiny_text_model
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.block_mask import takes_block_mask
from vlm_distill.batches import PromptBatch
from vlm_distill.forward import (
    prefix_shared_hidden,
    response_hidden,
    single_forward_hidden,
    tree_attention_hidden,
    unshared_hidden,
)


def one_by_one(loaded: LoadedModel, prompts: PromptBatch) -> Tensor:
    """Return the predicting hidden states from forwards without any padding, position ids or batching."""
    rows = []
    for prompt, ids in RESPONSES:
        single = prompts.select(torch.tensor([prompt]))
        prompt_ids = single.input_ids[single.attention_mask.bool()][None]
        extras = {name: value for name, value in single.extras.items() if len(value)}
        input_ids = torch.cat([prompt_ids, torch.tensor([ids])], dim=1)
        output = loaded.model(input_ids=input_ids, output_hidden_states=True, **extras)
        rows.append(output.hidden_states[-1][0, prompt_ids.shape[1] - 1 : -1])
    return torch.cat(rows)


@pytest.mark.parametrize("build", [tiny_text_model, tiny_llava])
def test_hidden_states_equal_those_of_unpadded_forwards(build):
    loaded = build()
    prompts = prompts_of(loaded)
    with torch.no_grad():
        found = response_hidden(loaded, prompts, responses_of(RESPONSES))
        expected = one_by_one(loaded, prompts)
    assert found.shape == (14, 16)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("build", [tiny_text_model, tiny_llava])
def test_wider_padding_on_either_side_changes_nothing(build):
    loaded = build()
    prompts = prompts_of(loaded)
    wide = PromptBatch(
        input_ids=torch.nn.functional.pad(prompts.input_ids, (5, 0)),
        attention_mask=torch.nn.functional.pad(prompts.attention_mask, (5, 0)),
        extras=prompts.extras,
        extra_counts=prompts.extra_counts,
    )
    with torch.no_grad():
        narrow_hidden = response_hidden(loaded, prompts, responses_of(RESPONSES))
        wide_hidden = response_hidden(loaded, wide, responses_of(RESPONSES, width=9))
    torch.testing.assert_close(narrow_hidden, wide_hidden, atol=1e-5, rtol=1e-5)


def test_a_response_alone_gives_its_rows_of_the_batch():
    loaded = tiny_llava()
    prompts = prompts_of(loaded)
    with torch.no_grad():
        together = response_hidden(loaded, prompts, responses_of(RESPONSES))
        alone = torch.cat([response_hidden(loaded, prompts, responses_of([pair])) for pair in RESPONSES])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_only_text_prompts_selected_from_a_batch_with_images_are_forwarded():
    loaded = tiny_llava()
    prompts = prompts_of(loaded)
    with torch.no_grad():
        selected = response_hidden(loaded, prompts, responses_of([(1, [80, 1])]))
        encoded_alone = response_hidden(
            loaded, loaded.encode(PROMPTS[1:2], [[]]), responses_of([(0, [80, 1])])
        )
    torch.testing.assert_close(selected, encoded_alone, atol=1e-5, rtol=1e-5)


def test_other_images_give_other_hidden_states():
    loaded = tiny_llava()
    swapped = loaded.encode(PROMPTS, [[picture("yellow")], [], IMAGES[2]])
    with torch.no_grad():
        first = response_hidden(loaded, prompts_of(loaded), responses_of([(0, [10, 1])]))
        second = response_hidden(loaded, swapped, responses_of([(0, [10, 1])]))
    assert (first - second).abs().max() > 1e-4


def test_order_of_two_images_matters():
    loaded = tiny_llava()
    reversed_images = loaded.encode(PROMPTS, [*IMAGES[:2], IMAGES[2][::-1]])
    with torch.no_grad():
        first = response_hidden(loaded, prompts_of(loaded), responses_of([(2, [10, 1])]))
        second = response_hidden(loaded, reversed_images, responses_of([(2, [10, 1])]))
    assert (first - second).abs().max() > 1e-4


def test_a_prompt_is_predicted_from_its_last_position_not_from_the_response():
    loaded = tiny_text_model()
    prompts = prompts_of(loaded)
    with torch.no_grad():
        first = response_hidden(loaded, prompts, responses_of([(0, [10, 20])]))
        second = response_hidden(loaded, prompts, responses_of([(0, [99, 20])]))
    torch.testing.assert_close(first[0], second[0])
    assert (first[1] - second[1]).abs().max() > 1e-4


def test_gradients_through_padded_rows_are_finite_and_equal_those_without_padding():
    loaded = tiny_llava()
    gradients = []
    for function in (lambda m, p: response_hidden(m, p, responses_of(RESPONSES, width=8)), one_by_one):
        model = copy.deepcopy(loaded.model).train()
        trained = LoadedModel(
            adapter=loaded.adapter,
            model=model,
            processor=loaded.processor,
            tokenizer=loaded.tokenizer,
            path=loaded.path,
            fingerprint="",
            stop_ids=loaded.stop_ids,
            image_token_ids=loaded.image_token_ids,
        )
        function(trained, prompts_of(loaded)).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    padded, plain = gradients
    assert padded.keys() == plain.keys()
    assert any("vision_tower" in name for name in padded)
    for name, gradient in padded.items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("function", [unshared_hidden, prefix_shared_hidden, single_forward_hidden])
def test_responses_without_tokens_have_no_rows(function):
    loaded, pairs = tiny_llava(), [(0, []), (0, []), (1, []), (2, [])]
    assert function(loaded, prompts_of(loaded), responses_of(pairs)).shape == (0, 16)


SHAPES = {"several": RESPONSES, "one token": [(0, [10]), (1, [20]), (0, [30])], "reordered": RESPONSES[::-1]}


@pytest.mark.parametrize("shared", ["cache", "one sequence, sdpa", "one sequence, eager"])
@pytest.mark.parametrize("build", [tiny_text_model, tiny_llava])
@pytest.mark.parametrize("pairs", SHAPES.values(), ids=SHAPES)
def test_a_shared_prefix_gives_the_hidden_states_and_gradients_of_separate_forwards(build, pairs, shared):
    loaded, found = build(), []
    for function in (unshared_hidden, prefix_shared_hidden if shared == "cache" else tree_attention_hidden):
        model = copy.deepcopy(loaded.model).train()
        if "one" in shared:
            model.set_attn_implementation(shared.split()[-1])
            assert takes_block_mask(model)
        trained = replace(loaded, model=model)
        hidden = function(trained, prompts_of(loaded), responses_of(pairs))
        # Weighted, so that a gradient that lands on another row shows.
        (hidden * torch.linspace(1, 2, hidden.numel()).view_as(hidden)).square().sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((hidden.detach(), gradients))
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-5, rtol=1e-5)
    assert found[0][1].keys() == found[1][1].keys()
    largest = max(float(gradient.abs().max()) for gradient in found[0][1].values())
    for name, gradient in found[0][1].items():
        # A key bias has no effect through the softmax: its gradient is rounding, measured against all others.
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-4, atol=1e-6 * largest, msg=name)


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
