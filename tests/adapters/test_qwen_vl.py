"""Qwen-VL through the adapter against the models' own code on one unpadded prompt at a time."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.prompts import responses_of
from tests.tiny import example, fresh, picture
from tests.tiny_qwen import FAMILIES, tiny_qwen
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.catalog import find_adapter
from vlm_distill.adapters.chat import sequential_positions
from vlm_distill.adapters.qwen_vl import QWEN_VL
from vlm_distill.alignment.pair import pair_report
from vlm_distill.batches import PromptBatch
from vlm_distill.forward import (
    prefix_shared_hidden,
    response_hidden,
    tree_attention_hidden,
    unshared_hidden,
)
from vlm_distill.generation.engine import Sampling
from vlm_distill.generation.transformers_engine import TransformersEngine
from vlm_distill.losses import IdRange
from vlm_distill.models.block_mask import takes_block_mask
from vlm_distill.models.load import load_model
from vlm_distill.models.lora import part_of
from vlm_distill.models.save import save_model
from vlm_distill.records import Example

every_family = pytest.mark.parametrize("family", FAMILIES)

WIDE, SMALL, TALL = (40, 16), (16, 16), (8, 32)  # width and height: 10, 4 and 4 image tokens
PROMPTS = [
    example("a", "What?", num_images=1),
    example("b", "hi"),
    example("c", "Which is red?", num_images=2, system="Look."),
]
IMAGES = [
    [picture("red", size=WIDE)],
    [],
    [picture("blue", size=SMALL), picture("green", size=TALL)],
]
RESPONSES = [(0, [40, 50, 258]), (2, [60, 258]), (0, [70, 71, 72, 73, 258]), (1, [80, 81]), (2, [90, 91, 92])]


def prompts_of(loaded: LoadedModel) -> PromptBatch:
    return loaded.encode(PROMPTS, IMAGES)


def own_inputs(loaded: LoadedModel, row: int) -> dict[str, Tensor]:
    """Return the unpadded inputs of one prompt as the processor makes them, token types included."""
    pictures, content = iter(IMAGES[row]), []
    for message in PROMPTS[row].messages:
        parts = [
            {**part, "image": next(pictures)} if part["type"] == "image" else part
            for part in message.as_chat()["content"]
        ]
        content.append({"role": message.role, "content": parts})
    return dict(
        loaded.processor.apply_chat_template(
            content, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    )


def one_by_one(loaded: LoadedModel, pairs: list[tuple[int, list[int]]]) -> Tensor:
    """Return the predicting hidden states of the models' own forward, which finds the positions itself."""
    rows = []
    for prompt, ids in pairs:
        inputs = own_inputs(loaded, prompt)
        length = inputs["input_ids"].shape[1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
        for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, len(ids)), value=value)
        hidden = loaded.model.base_model(**inputs).last_hidden_state
        rows.append(hidden[0, length - 1 : -1])
    return torch.cat(rows)


def with_gradients(
    function: Callable[[LoadedModel], Tensor], loaded: LoadedModel
) -> tuple[Tensor, dict[str, Tensor]]:
    trained = replace(loaded, model=copy.deepcopy(loaded.model).train())
    hidden = function(trained)
    # Weighted, so that a gradient that lands on another row shows.
    (hidden * torch.linspace(1, 2, hidden.numel()).view_as(hidden)).square().sum().backward()
    return hidden.detach(), {n: p.grad for n, p in trained.model.named_parameters() if p.grad is not None}


def assert_same(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    assert found[1].keys() == expected[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        # A key bias has no effect through the softmax: its gradient is rounding, measured against all others.
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=2e-6 * largest, msg=name)


@every_family
def test_the_family_is_found_by_its_model_type(family: str):
    assert find_adapter(family) is QWEN_VL


def test_rows_of_pixels_and_grids_are_counted_at_their_prompt_for_images_of_several_sizes():
    prompts = prompts_of(tiny_qwen())
    # Four pixels a patch: 10 x 4, then 4 x 4 and 2 x 8 patches.
    assert prompts.extra_counts == {"pixel_values": (40, 0, 16 + 16), "image_grid_thw": (1, 0, 2)}
    assert prompts.extras["image_grid_thw"].tolist() == [[1, 4, 10], [1, 4, 4], [1, 8, 2]]


def test_selected_prompts_bring_the_pixels_of_their_own_images():
    loaded = tiny_qwen()
    selected = prompts_of(loaded).select(torch.tensor([2, 1, 0, 2]))
    expected = loaded.encode([PROMPTS[i] for i in (2, 1, 0, 2)], [IMAGES[i] for i in (2, 1, 0, 2)])
    assert torch.equal(selected.input_ids, expected.input_ids)
    assert selected.extra_counts == expected.extra_counts
    for name, value in expected.extras.items():
        assert torch.equal(selected.extras[name], value), name


@every_family
def test_positions_are_those_of_the_model_behind_padding_and_go_on_in_the_response(family: str):
    loaded, prompts = tiny_qwen(family), prompts_of(tiny_qwen(family))
    ids = torch.nn.functional.pad(prompts.input_ids, (0, 2), value=9)
    mask = torch.nn.functional.pad(prompts.attention_mask, (0, 2), value=1)
    positions = QWEN_VL.position_ids(loaded.model, ids, mask, prompts.extras)
    for row in range(3):
        inputs = own_inputs(loaded, row)
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw")
        own = loaded.model.base_model.get_rope_index(**{n: inputs[n] for n in names if n in inputs})[0][:, 0]
        length = own.shape[1]
        found = positions[:, row][:, mask[row].bool()]
        assert torch.equal(found[:, :length], own)
        last = int(own[0, -1])
        assert found[:, length:].tolist() == [[last + 1, last + 2]] * 3
    # The wide image is 5 x 2 tokens and moves the text behind it by 5 positions only.
    assert int(positions[0, 0, -1]) == int(mask[0].sum()) - 1 - (10 - 5)


@every_family
def test_hidden_states_and_gradients_equal_those_of_the_models_own_unpadded_forward(family: str):
    loaded = tiny_qwen(family)
    found = with_gradients(lambda m: unshared_hidden(m, prompts_of(m), responses_of(RESPONSES)), loaded)
    assert found[0].shape == (15, 16)
    assert any("visual.patch_embed" in name for name in found[1])
    assert_same(found, with_gradients(lambda m: one_by_one(m, RESPONSES), loaded))


@every_family
def test_a_shared_prefix_gives_the_hidden_states_and_gradients_of_separate_forwards(family: str):
    loaded, found = tiny_qwen(family), []
    assert takes_block_mask(loaded.model)
    for function in (prefix_shared_hidden, tree_attention_hidden, unshared_hidden):
        found.append(
            with_gradients(lambda m, f=function: f(m, prompts_of(m), responses_of(RESPONSES)), loaded)
        )
    assert_same(found[0], found[2])
    assert_same(found[1], found[2])


@every_family
def test_a_text_prompt_selected_from_a_batch_with_images_is_forwarded(family: str):
    loaded = tiny_qwen(family)
    with torch.no_grad():
        found = unshared_hidden(loaded, prompts_of(loaded), responses_of([(1, [80, 81])]))
        shared = prefix_shared_hidden(
            loaded, prompts_of(loaded).select(torch.tensor([1])), responses_of([(0, [80, 81])])
        )
        expected = one_by_one(loaded, [(1, [80, 81])])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shared, expected, atol=1e-5, rtol=1e-5)


def test_hidden_states_and_head_give_the_logits_of_the_model():
    loaded = tiny_qwen()
    inputs = own_inputs(loaded, 2)
    prompts = prompts_of(loaded).select(torch.tensor([2]))
    positions = QWEN_VL.position_ids(loaded.model, prompts.input_ids, prompts.attention_mask, prompts.extras)
    with torch.no_grad():
        hidden = QWEN_VL.backbone(
            loaded.model, prompts.input_ids, prompts.attention_mask, positions, prompts.extras, None
        )
        expected = loaded.model(**inputs).logits
    torch.testing.assert_close(hidden @ QWEN_VL.head(loaded.model).weight.T, expected, atol=1e-5, rtol=1e-5)


def test_sequential_positions_would_be_wrong():
    loaded = tiny_qwen()
    wrong = replace(
        loaded,
        adapter=replace(QWEN_VL, position_ids=lambda *args: sequential_positions(*args).expand(3, -1, -1)),
    )
    with torch.no_grad():
        right, found = (
            response_hidden(m, prompts_of(loaded), responses_of(RESPONSES[:1])) for m in (loaded, wrong)
        )
    assert (right - found).abs().max() > 1e-3


@every_family
def test_what_the_model_remembers_of_other_prompts_changes_nothing_and_nothing_is_remembered(family: str):
    loaded = fresh(tiny_qwen(family))
    responses = responses_of(RESPONSES)
    with torch.no_grad():
        before = [f(loaded, prompts_of(loaded), responses) for f in (unshared_hidden, prefix_shared_hidden)]
        assert loaded.model.base_model.rope_deltas is None
        loaded.model.generate(**own_inputs(loaded, 0), max_new_tokens=2, do_sample=False)
        stale = loaded.model.base_model.rope_deltas
        assert stale.abs().max() > 0
        after = [f(loaded, prompts_of(loaded), responses) for f in (unshared_hidden, prefix_shared_hidden)]
    assert loaded.model.base_model.rope_deltas is stale
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def load_pictures(one: Example) -> list:
    return IMAGES[[prompt.id for prompt in PROMPTS].index(one.id)]


def with_many_stops(loaded: LoadedModel) -> LoadedModel:
    """Random models hardly ever emit the one stop token: let every fifth token stop them."""
    return replace(loaded, stop_ids=(*loaded.stop_ids, *range(0, 256, 5)))


@every_family
@pytest.mark.parametrize("stopping", [False, True])
def test_greedy_equals_generate_of_transformers(family: str, stopping: bool):
    loaded = with_many_stops(tiny_qwen(family)) if stopping else tiny_qwen(family)
    engine = TransformersEngine(loaded=loaded, load_images=load_pictures, batch_size=8)
    completions = engine.generate(PROMPTS, Sampling(temperature=0, max_new_tokens=8))
    for row, found in enumerate(completions):
        inputs = own_inputs(loaded, row)
        expected = loaded.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=8,
            eos_token_id=list(loaded.stop_ids),
            pad_token_id=loaded.tokenizer.pad_token_id,
            suppress_tokens=list(loaded.image_token_ids),
        )[0, inputs["input_ids"].shape[1] :].tolist()
        assert list(found.token_ids) == expected
        assert found.finish == ("stop" if expected[-1] in loaded.stop_ids else "length")


def test_samples_share_the_prefill_of_their_prompt_and_have_the_log_probabilities_of_training():
    loaded = with_many_stops(tiny_qwen())
    engine = TransformersEngine(loaded=loaded, load_images=load_pictures, batch_size=8)
    completions = engine.generate(PROMPTS, Sampling(max_new_tokens=6, num_samples=2, seed=1))
    assert len({len(one.token_ids) for one in completions}) > 1
    pairs = [(row // 2, list(one.token_ids)) for row, one in enumerate(completions)]
    with torch.no_grad():
        hidden = unshared_hidden(loaded, prompts_of(loaded), responses_of(pairs))
        log_probs = (hidden @ QWEN_VL.head(loaded.model).weight.T).log_softmax(dim=-1)
    labels = torch.tensor([token for _, ids in pairs for token in ids])
    found = [value for one in completions for value in one.token_log_probs or ()]
    assert found == pytest.approx(log_probs.gather(1, labels[:, None])[:, 0].tolist(), abs=1e-4)


@every_family
def test_every_parameter_belongs_to_one_component_and_the_merger_is_the_projector(family: str):
    found: dict[str, set[str]] = {}
    for name, _ in tiny_qwen(family).model.named_parameters():
        found.setdefault(str(part_of(name, QWEN_VL.parts)), set()).add(name)
    assert found.keys() == {"vision", "projector", "language"}
    assert all("merger" in name for name in found["projector"])
    assert not any("merger" in name for name in found["vision"] | found["language"])


@every_family
def test_a_saved_model_loads_through_the_catalog_and_answers_the_same(family: str, tmp_path: Path):
    loaded = tiny_qwen(family)
    save_model(loaded, tmp_path / "model")
    again = load_model(str(tmp_path / "model"))
    assert again.adapter is QWEN_VL
    assert (again.stop_ids, again.image_token_ids) == (loaded.stop_ids, loaded.image_token_ids)
    with torch.no_grad():
        first, second = (response_hidden(m, prompts_of(m), responses_of(RESPONSES)) for m in (loaded, again))
    torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-6)


def test_a_pair_with_output_layers_of_two_widths_shares_the_ids_below_the_image_tokens():
    # Qwen2.5-VL pads 151,665 tokens to 152,064 rows in the 7B model and to 151,936 in the 3B one.
    report = pair_report(tiny_qwen(vocab_size=288), tiny_qwen(seed=1, vocab_size=272))
    assert report.alignment.student == IdRange(stop=264)
    image_pad = tiny_qwen().image_token_ids[0]
    assert report.alignment.suppressed_ids == (image_pad, *range(264, 288))
    # 640 x 480 is brought below 1024 pixels.
    assert report.teacher.num_image_tokens == report.student.num_image_tokens > 0
