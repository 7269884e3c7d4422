import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny import fresh, tiny_llava, tiny_text_model
from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.runs.memory import MemoryEstimate, MicroBatchShape, estimate, layer_elements, teacher_bytes
from vlm_distill.training.config import TrainConfig

TOKENS = MicroBatchShape(prompt=30, response=8, responses=2, image=4)


def num_bytes(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def estimate_of(
    tokens: MicroBatchShape = TOKENS, *, student: LoadedModel | None = None, **settings: Any
) -> MemoryEstimate:
    train = TrainConfig.model_validate({"steps": 1, "micro_batch_size": 4, **settings})
    return estimate(student or tiny_llava(), tiny_llava(), train=train, tokens=tokens)


def test_weights_gradients_and_moments_of_full_training_are_four_times_the_weights():
    size = num_bytes(tiny_llava().model)
    device = estimate_of().device
    assert (device["student weights"], device["gradients"], device["AdamW"]) == (size, size, 2 * size)


def test_only_what_learns_has_gradients_and_moments():
    tower = num_bytes(tiny_llava().model.model.vision_tower)
    frozen, full = estimate_of(trainable={"vision": "frozen"}).device, estimate_of().device
    assert full["gradients"] - frozen["gradients"] == tower
    assert full["AdamW"] - frozen["AdamW"] == 2 * tower


def test_lora_adds_its_matrices_and_takes_the_gradients_of_the_rest_away():
    only = {"vision": "frozen", "projector": "frozen"}
    device = estimate_of(trainable={**only, "language": {"kind": "lora", "rank": 2}}).device
    # Two layers of four 16 x 16 projections and three between 16 and 32.
    matrices = 2 * 2 * (4 * (16 + 16) + 3 * (16 + 32)) * 4
    assert device["gradients"] == matrices
    assert device["student weights"] == num_bytes(tiny_llava().model) + matrices


def test_the_estimate_leaves_the_models_as_they_were():
    before = {name: parameter.requires_grad for name, parameter in tiny_llava().model.named_parameters()}
    estimate_of(trainable={"language": {"kind": "lora", "rank": 2}})
    after = {name: parameter.requires_grad for name, parameter in tiny_llava().model.named_parameters()}
    assert after == before


def test_tied_weights_are_counted_once():
    student = tiny_text_model()
    config = copy.deepcopy(student.model.config)
    config.tie_word_embeddings = True
    tied: Any = AutoModelForCausalLM.from_config(config)
    found = estimate(replace(student, model=tied), None, train=TrainConfig(steps=1), tokens=TOKENS)
    assert found.device["student weights"] == num_bytes(tied)
    assert teacher_bytes(replace(student, model=tied), LoadOptions()) == (num_bytes(tied), 0)


@pytest.mark.parametrize(
    ("model_type", "low", "high"), [("llama", 0.95, 1.05), ("qwen3", 1.0, 1.2), ("mistral", 0.95, 1.05)]
)
def test_the_formula_for_activations_is_near_the_tensors_that_autograd_saves(
    model_type: str, low: float, high: float
):
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        model_type, **sizes, num_key_value_heads=2, head_dim=16, vocab_size=100, sliding_window=None
    )
    model: Any = AutoModelForCausalLM.from_config(config)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    # The tensors themselves are kept, or a later one could get the place of one that was freed.
    saved: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.arange(100).repeat(4, 1)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.base_model(input_ids=ids, use_cache=False)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in saved.values()) / 4 / ids.numel() / 4
    assert low < measured / layer_elements(config) < high


def test_gradient_checkpointing_and_fewer_tokens_need_less_for_activations():
    tokens = MicroBatchShape(prompt=300, response=8)
    plain = estimate_of(tokens).device["activations"]
    assert estimate_of(tokens, gradient_checkpointing=True).device["activations"] < plain
    assert estimate_of(replace(tokens, prompt=30)).device["activations"] < plain
    assert estimate_of(tokens, micro_batch_size=2).device["activations"] == plain / 2
    assert estimate_of(tokens, precision="bf16").device["activations"] < plain


def test_a_budget_of_tokens_needs_what_so_many_prompts_need():
    # A prompt takes 30 + 2 x 8 positions: its prefix is shared, with recomputed activations too.
    four = {"micro_batch_size": None, "micro_batch_tokens": 4 * 46 + 45}
    assert estimate_of(**four) == estimate_of(micro_batch_size=4)
    recomputed = {"gradient_checkpointing": True}
    assert estimate_of(**four, **recomputed) == estimate_of(micro_batch_size=4, **recomputed)
    assert estimate_of(**four, batch_size=2) == estimate_of(micro_batch_size=2)


def test_a_prefix_that_no_mask_can_share_is_counted_once_a_response():
    windowed = fresh(tiny_llava())
    windowed.model.get_decoder().config.sliding_window = 64
    recomputed = {"student": windowed, "gradient_checkpointing": True}
    # A prompt takes 2 x (30 + 8) positions.
    budget = estimate_of(micro_batch_size=None, micro_batch_tokens=4 * 46 + 45, **recomputed)
    assert budget == estimate_of(micro_batch_size=3, **recomputed)
    shared = estimate_of(gradient_checkpointing=True)
    assert shared.device["activations"] < estimate_of(**recomputed).device["activations"]


def test_a_tower_that_is_frozen_keeps_no_activations():
    learning = estimate_of().device["activations"]
    assert estimate_of(trainable={"vision": "frozen"}).device["activations"] < learning


def test_the_loss_needs_its_budget_at_most():
    assert estimate_of(loss_byte_budget=1000).device["loss"] == 1000
    assert estimate_of(loss_byte_budget=2**40).device["loss"] < 2**30


def test_the_teacher_is_counted_in_its_dtype_and_where_it_is_placed():
    teacher = tiny_llava()
    whole = num_bytes(teacher.model)
    assert teacher_bytes(teacher, LoadOptions()) == (whole, 0)
    assert teacher_bytes(teacher, LoadOptions(dtype="bfloat16")) == (whole // 2, 0)
    layers = teacher.model.model.language_model.layers
    on_device, on_host = teacher_bytes(teacher, LoadOptions(placement="cpu_offload"))
    assert on_host == num_bytes(layers)
    assert on_device == whole - on_host + max(parameter.nbytes for parameter in layers.parameters())


@pytest.mark.parametrize(
    ("quantisation", "bits"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8),
        ({"quant_method": "quanto", "weights": "int2"}, 2),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}}, 4),
        ({"quant_method": "hqq", "nbits": 4}, 4),
        ({"quant_method": "unheard-of"}, 32),
    ],
)
def test_quantised_linear_layers_are_counted_in_bits_and_the_rest_in_the_dtype(
    quantisation: dict[str, Any], bits: int
):
    teacher = tiny_text_model()
    linear = sum(
        module.weight.numel()
        for name, module in teacher.model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    )
    expected = num_bytes(teacher.model) - linear * 4 + linear * bits // 8
    assert teacher_bytes(teacher, LoadOptions(quantisation=quantisation)) == (expected, 0)


def test_the_lines_name_every_part_with_a_unit():
    found = MemoryEstimate(
        device={"student weights": 3 * 2**30, "loss": 5 * 2**20, "more for the teacher": 0},
        host={"teacher layers": 2**11},
        about="micro-batches",
    )
    assert found.lines() == [
        "about 3.00 GiB to train micro-batches",
        "student weights 3.00 GiB, loss 5.00 MiB",
        "in the memory of the host: teacher layers 2.00 KiB",
    ]
