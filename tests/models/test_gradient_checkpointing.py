"""What the trainer relies on: transformers' checkpointing changes memory, not the loss or its gradients."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.prompts import RESPONSES, prompts_of, responses_of
from tests.tiny import tiny_llava, tiny_text_model
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.errors import AdapterError
from vlm_distill.forward import prefix_shared_hidden, response_hidden, unshared_hidden
from vlm_distill.models.gradient_checkpointing import cache_disabled, keep_activations, recompute_activations
from vlm_distill.models.lora import Lora, add_lora, part_of

LORA = {"lora": {"language": Lora(rank=2)}, "dora": {"language": Lora(rank=2, dora=True)}}


def student_of(loaded: LoadedModel, lora: dict[str, Lora], *, frozen: str = "none") -> LoadedModel:
    """Return a copy in training mode whose component `frozen` does not learn."""
    student = replace(loaded, model=copy.deepcopy(loaded.model).train())
    for name, parameter in student.model.named_parameters():
        parameter.requires_grad_(part_of(name, student.adapter.parts) != frozen)
    if lora:
        add_lora(student, lora, seed=0)
    return student


def loss_and_gradients(
    student: LoadedModel, forward: Callable[..., torch.Tensor] = unshared_hidden
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    hidden = forward(student, prompts_of(student), responses_of(RESPONSES))
    weights = torch.linspace(1, 2, hidden.numel()).view_as(hidden)
    loss = (hidden * weights).square().mean()
    loss.backward()
    gradients = {name: p.grad for name, p in student.model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def count_forwards(student: LoadedModel) -> list[str]:
    """Return a list to which every forward of a layer normalisation appends its name, recomputed or not."""
    calls: list[str] = []
    for name, module in student.model.named_modules():
        if name.endswith(("input_layernorm", "layer_norm1")):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    return calls


@pytest.mark.parametrize("frozen", ["none", "vision"])
@pytest.mark.parametrize("lora", LORA.values(), ids=LORA)
@pytest.mark.parametrize("build", [tiny_text_model, tiny_llava])
def test_checkpointing_keeps_loss_and_gradients(build, lora, frozen) -> None:
    loss, gradients = loss_and_gradients(student_of(build(), lora, frozen=frozen))
    student = student_of(build(), lora, frozen=frozen)
    recompute_activations(student.model)
    found, found_gradients = loss_and_gradients(student)
    torch.testing.assert_close(found, loss)
    assert found_gradients.keys() == gradients.keys()
    learning = {name for name, p in student.model.named_parameters() if p.requires_grad}
    assert gradients.keys() <= learning
    assert gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, msg=name)


@pytest.mark.parametrize("frozen", ["none", "vision"])
def test_every_learning_layer_is_forwarded_again_in_the_backward(frozen) -> None:
    student = student_of(tiny_llava(), {}, frozen=frozen)
    recompute_activations(student.model)
    calls = count_forwards(student)
    loss_and_gradients(student)
    times = {name: calls.count(name) for name in calls}
    # A frozen tower keeps no activations, so it has nothing to recompute.
    tower = 1 if frozen == "vision" else 2
    assert {n for name, n in times.items() if "vision_tower" in name} == {tower}
    assert {n for name, n in times.items() if "language_model" in name} == {2}


def test_dropout_of_lora_draws_the_same_numbers_when_it_is_recomputed() -> None:
    results = []
    for checkpointing in (False, True):
        student = student_of(tiny_text_model(), {"language": Lora(rank=2, dropout=0.5)})
        for name, parameter in student.model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.constant_(parameter, 0.1)
        if checkpointing:
            recompute_activations(student.model)
        torch.manual_seed(0)
        results.append(loss_and_gradients(student))
    torch.testing.assert_close(results[0], results[1])


def test_checkpointing_acts_in_training_mode_until_it_is_switched_off() -> None:
    student = student_of(tiny_text_model(), {})
    assert not cache_disabled(student.model)
    recompute_activations(student.model)
    assert cache_disabled(student.model)
    student.model.eval()
    calls = count_forwards(student)
    loss_and_gradients(student)
    assert {calls.count(name) for name in calls} == {1}
    assert not cache_disabled(student.model)
    keep_activations(student.model.train())
    assert not cache_disabled(student.model)


@pytest.mark.parametrize("build", [tiny_text_model, tiny_llava])
def test_the_prefix_is_shared_in_one_sequence_where_the_cache_is_dropped(build) -> None:
    prompts, responses = prompts_of(build()), responses_of(RESPONSES)
    results = []
    for forward in (unshared_hidden, response_hidden):
        student = student_of(build(), {})
        recompute_activations(student.model)
        widths: list[tuple[int, ...]] = []
        layer = student.model.get_decoder().layers[0]
        layer.register_forward_pre_hook(lambda _, args, widths=widths: widths.append(tuple(args[0].shape)))
        results.append(loss_and_gradients(student, forward))
    # One forward with a row per prompt, its responses one behind the other.
    assert widths == [(3, prompts.input_ids.shape[1] + 2 * 4, 16)]
    (loss, gradients), (found, found_gradients) = results
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=0)
    assert found_gradients.keys() == gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-5, atol=1e-6 * largest, msg=name)
    # What samples from the live student does so in eval mode, with a cache.
    student.model.eval()
    torch.testing.assert_close(
        prefix_shared_hidden(student, prompts, responses),
        response_hidden(student, prompts, responses),
    )


def test_the_prefix_is_not_shared_where_neither_cache_nor_block_mask_serve() -> None:
    student = student_of(tiny_text_model(), {})
    prompts, responses = prompts_of(student), responses_of(RESPONSES)
    expected = unshared_hidden(student, prompts, responses)
    recompute_activations(student.model)
    student.model.config.sliding_window = 8
    assert (prefix_shared_hidden(student, prompts, responses) - expected).abs().max() > 0.1
    torch.testing.assert_close(response_hidden(student, prompts, responses), expected, rtol=0, atol=0)


def test_a_model_without_checkpointing_is_an_error() -> None:
    class Unable(type(tiny_text_model().model)):
        supports_gradient_checkpointing = False

    with pytest.raises(AdapterError, match="Unable does not support it"):
        recompute_activations(Unable(tiny_text_model().model.config))
