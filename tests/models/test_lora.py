import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tests.prompts import RESPONSES, prompts_of, responses_of
from tests.tiny import fresh, tiny_llava, tiny_text_model
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.batches import PromptBatch
from vlm_distill.errors import AdapterError
from vlm_distill.forward import prefix_shared_hidden, unshared_hidden
from vlm_distill.models.load import load_model
from vlm_distill.models.lora import Lora, add_lora, merge_lora, part_of
from vlm_distill.models.save import save_model

PLAIN, DORA = Lora(rank=4, alpha=8), Lora(rank=3, alpha=3, dora=True)
PAIRS = {
    "text": (tiny_text_model, {"language": PLAIN}),
    "text dora": (tiny_text_model, {"language": DORA}),
    "llava language": (tiny_llava, {"language": PLAIN}),
    "llava mixed": (tiny_llava, {"vision": Lora(rank=2, alpha=4), "projector": DORA, "language": PLAIN}),
}


def with_lora(loaded: LoadedModel, lora: dict[str, Lora], *, moved: bool = True) -> LoadedModel:
    """Return a copy with matrices, which differ from their start where `moved`."""
    student = fresh(loaded)
    add_lora(student, lora, seed=3)
    if moved:
        generator = torch.Generator().manual_seed(4)
        for name, parameter in student.model.named_parameters():
            if ".lora_" in name:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return student


def logits_of(loaded: LoadedModel) -> torch.Tensor:
    prompts = prompts_of(loaded)
    with torch.no_grad():
        extras = dict(prompts.extras)
        return loaded.model(prompts.input_ids, attention_mask=prompts.attention_mask, **extras).logits


def learning(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    return {name: p for name, p in loaded.model.named_parameters() if p.requires_grad}


@pytest.fixture(params=PAIRS.values(), ids=PAIRS)
def pair(request: pytest.FixtureRequest) -> tuple[LoadedModel, dict[str, Lora]]:
    build, lora = request.param
    return build(), lora


def test_new_matrices_change_no_output_and_moved_ones_do(pair) -> None:
    loaded, lora = pair
    expected = logits_of(loaded)
    torch.testing.assert_close(
        logits_of(with_lora(loaded, lora, moved=False)), expected, atol=1e-6, rtol=1e-5
    )
    assert (logits_of(with_lora(loaded, lora)) - expected).abs().max() > 1e-3


def test_exactly_the_matrices_of_a_component_learn(pair) -> None:
    loaded, lora = pair
    student = with_lora(loaded, lora, moved=False)
    for name, parameter in student.model.named_parameters():
        part = part_of(name, student.adapter.parts)
        expected = part not in lora or ".lora_" in name
        assert parameter.requires_grad == expected, name


def test_every_linear_layer_of_the_component_is_wrapped_except_the_head() -> None:
    student = with_lora(tiny_llava(), {"language": PLAIN})
    found = {name for name, module in student.model.named_modules() if isinstance(module, LoraLayer)}
    layers = [f"model.language_model.layers.{number}." for number in range(2)]
    attention = [f"self_attn.{name}_proj" for name in "qkvo"]
    mlp = [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    assert found == {layer + name for layer in layers for name in attention + mlp}


def test_an_untied_head_gets_no_matrices_either() -> None:
    loaded = fresh(tiny_text_model())
    loaded.model.lm_head.weight = torch.nn.Parameter(loaded.model.lm_head.weight.detach().clone())
    student = with_lora(loaded, {"language": PLAIN})
    assert type(student.model.lm_head) is torch.nn.Linear
    assert not student.model.lm_head.weight.requires_grad


def test_components_have_their_own_ranks() -> None:
    student = with_lora(tiny_llava(), PAIRS["llava mixed"][1])
    ranks: dict[str | None, set[int]] = {}
    for name, parameter in student.model.named_parameters():
        if ".lora_A." in name:
            ranks.setdefault(part_of(name, student.adapter.parts), set()).add(len(parameter))
    assert ranks == {"vision": {2}, "projector": {3}, "language": {4}}


def test_the_matrices_follow_from_the_seed_and_other_random_numbers_go_on(pair) -> None:
    loaded, lora = pair
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = learning(with_lora(loaded, lora, moved=False))
    assert torch.equal(torch.rand(3), expected)
    again = learning(with_lora(loaded, lora, moved=False))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = fresh(loaded)
    add_lora(other, lora, seed=5)
    assert any(not torch.equal(first[name], value) for name, value in learning(other).items())


def test_the_longest_prefix_decides_the_component() -> None:
    parts = {"vision": ("visual.",), "projector": ("visual.merger.",), "language": ("model.",)}
    assert part_of("visual.merger.mlp.0.weight", parts) == "projector"
    assert part_of("visual.blocks.0.weight", parts) == "vision"
    assert part_of("other.weight", parts) is None


def test_merging_keeps_the_logits_and_gives_back_a_plain_model(pair) -> None:
    loaded, lora = pair
    student = with_lora(loaded, lora)
    expected = logits_of(student)
    merge_lora(student)
    assert (logits_of(student) - expected).abs().max() < 1e-5
    plain = loaded.model.state_dict()
    assert {name: value.shape for name, value in student.model.state_dict().items()} == {
        name: value.shape for name, value in plain.items()
    }
    assert [type(module) for module in student.model.modules()] == [
        type(module) for module in loaded.model.modules()
    ]
    assert not hasattr(student.model, "peft_config")


def test_a_merged_model_is_saved_like_a_plain_one_and_loads_with_plain_transformers(
    pair, tmp_path: Path
) -> None:
    loaded, lora = pair
    student = with_lora(loaded, lora)
    expected = logits_of(student)
    merge_lora(student)
    save_model(student, tmp_path / "student")
    save_model(loaded, tmp_path / "plain")
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("student", "plain")]
    assert names[0] == names[1]
    assert (tmp_path / "student" / "config.json").read_text() == (tmp_path / "plain/config.json").read_text()
    model_class = AutoModelForImageTextToText if loaded.image_token_ids else AutoModelForCausalLM
    model, report = model_class.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    found = logits_of(replace(load_model(str(tmp_path / "student")), model=model.eval()))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_shared_prefix_equals_separate_forwards_with_matrices(pair) -> None:
    loaded, lora = pair
    found = []
    for function in (unshared_hidden, prefix_shared_hidden):
        student = with_lora(loaded, lora)
        student.model.train()
        hidden = function(student, prompts_of(loaded), responses_of(RESPONSES))
        (hidden * torch.linspace(1, 2, hidden.numel()).view_as(hidden)).square().sum().backward()
        gradients = {name: p.grad for name, p in student.model.named_parameters() if p.grad is not None}
        found.append((hidden.detach(), gradients))
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-5, rtol=1e-5)
    assert found[0][1].keys() == found[1][1].keys()
    assert any(".lora_B." in name for name in found[0][1])
    largest = max(float(gradient.abs().max()) for gradient in found[0][1].values())
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-3, atol=1e-5 * largest, msg=name)


def test_a_live_model_generates_what_its_merged_one_does(pair) -> None:
    loaded, lora = pair
    student = with_lora(loaded, lora)
    prompts = prompts_of(loaded)

    def generate() -> torch.Tensor:
        arguments = {"attention_mask": prompts.attention_mask, **prompts.extras}
        return student.model.generate(prompts.input_ids, **arguments, max_new_tokens=5, do_sample=False)

    live = generate()
    merge_lora(student)
    assert torch.equal(generate(), live)


def loss_of(student: LoadedModel, prompts: PromptBatch) -> torch.Tensor:
    """Return the mean negative log-probability of some responses."""
    responses = responses_of(RESPONSES)
    hidden = unshared_hidden(student, prompts, responses)
    logits = hidden @ student.adapter.head(student.model).weight.T
    return torch.nn.functional.cross_entropy(logits, responses.input_ids[responses.mask])


def train(student: LoadedModel, *, steps: int) -> list[float]:
    prompts = prompts_of(student)
    optimizer = torch.optim.AdamW(learning(student).values(), lr=3e-2)
    losses = []
    for _ in range(steps):
        loss = loss_of(student, prompts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_training_the_matrices_lowers_the_loss_and_moves_no_frozen_weight(pair) -> None:
    loaded, lora = pair
    student = with_lora(loaded, lora, moved=False)
    frozen = {n: p.detach().clone() for n, p in student.model.named_parameters() if not p.requires_grad}
    losses = train(student, steps=25)
    # The frozen head of the tiny LLaVA has small weights, so its loss cannot fall far.
    assert losses[-1] < losses[0] - 0.2
    for name, parameter in student.model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name


def test_the_learning_parameters_restore_the_state_of_a_trained_student(pair) -> None:
    loaded, lora = pair
    student = with_lora(loaded, lora, moved=False)
    train(student, steps=2)
    saved = {name: value.detach().clone() for name, value in learning(student).items()}
    again = fresh(loaded)
    # Other matrices at first, which the saved ones replace.
    add_lora(again, lora, seed=99)
    again.model.load_state_dict(saved, strict=False)
    assert torch.equal(logits_of(again), logits_of(student))


def test_dropout_acts_in_training_only() -> None:
    lora = {"language": Lora(rank=4, alpha=8, dropout=0.5)}
    student = with_lora(tiny_text_model(), lora)
    assert torch.equal(logits_of(student), logits_of(student))
    student.model.train()
    assert not torch.equal(logits_of(student), logits_of(student))


def test_lora_on_a_component_that_the_family_lacks_or_without_linear_layers_is_an_error() -> None:
    with pytest.raises(
        AdapterError, match=r"trainable\.vision: family 'causal_lm' has no such component.*language"
    ):
        add_lora(fresh(tiny_text_model()), {"vision": PLAIN}, seed=0)
    loaded = fresh(tiny_llava())
    parts = {**loaded.adapter.parts, "vision": ("model.vision_tower.embeddings.",)}
    convolutional = replace(loaded, adapter=replace(loaded.adapter, parts=parts))
    with pytest.raises(AdapterError, match=r"trainable\.vision: expected linear layers"):
        add_lora(convolutional, {"vision": PLAIN}, seed=0)
    # Nothing was frozen or wrapped before the error.
    assert all(parameter.requires_grad for parameter in convolutional.model.parameters())


def test_lora_on_a_quantised_model_is_an_error(tmp_path: Path) -> None:
    save_model(tiny_text_model(), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitnet"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    quantised = AutoModelForCausalLM.from_pretrained(tmp_path / "model", ignore_mismatched_sizes=True)
    with pytest.raises(AdapterError, match="quantised"):
        add_lora(replace(tiny_text_model(), model=quantised), {"language": PLAIN}, seed=0)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"ranks": 4}])
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Lora.model_validate(wrong)
