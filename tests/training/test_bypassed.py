"""LoRA where families read the weight of a linear layer past it, or use one in several places."""

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from tests.families.text import FAMILIES
from tests.tiny import add_statistics, fresh, tiny_llava, tiny_text_model
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.catalog import find_adapter
from vlm_distill.conformance.checks import examine
from vlm_distill.models.load import wrap_model
from vlm_distill.models.lora import Lora
from vlm_distill.training.bypassed import bypassed_layers
from vlm_distill.training.config import Trainable
from vlm_distill.training.parts import prepare_parts

# Recurrent layers, weights that stand in several places, routers that return more than a product, and no
# cache of transformers.
FAMILIES_WITH = ("jamba", "mamba", "falcon_mamba", "bamba", "zamba", "zamba2", "phimoe", "minimax")
# Their experts have no kernel in float64.
IN_FLOAT32 = ("jamba", "phimoe", "minimax")


def tiny(name: str) -> LoadedModel:
    model, tokenizer = FAMILIES[name]()
    return wrap_model(find_adapter(model.config.model_type), model, tokenizer, path=name)


@pytest.mark.parametrize("name", FAMILIES_WITH)
def test_merged_matrices_say_what_they_said_beside_the_weights(name: str) -> None:
    loaded = tiny(name)
    if name not in IN_FLOAT32:
        loaded.model.double()
    assert examine(loaded, ["lora"])["lora"].outcome == "passed"


def test_a_layer_whose_weight_is_read_past_it_gets_no_matrices_and_is_named() -> None:
    lines: list[str] = []
    student = tiny("jamba")
    prepare_parts(student, Trainable(language=Lora(rank=2)), seed=0, log=lines.append)
    wrapped = {name for name, one in student.model.named_modules() if isinstance(one, LoraLayer)}
    assert "model.layers.0.mamba.in_proj" in wrapped
    assert "model.layers.0.mamba.dt_proj" not in wrapped
    assert lines == [
        "LoRA: 1 linear layers get no matrices, for jamba reads their weights past them: "
        "model.layers.0.mamba.dt_proj"
    ]


class OneExpert(nn.Module):
    """A layer that asks the weight of the one that it calls for its dtype, and leaves the other alone."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.idle = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.asked(hidden.to(self.asked.weight.dtype))


def test_layers_that_are_called_too_or_not_at_all_are_not_bypassed() -> None:
    student = fresh(tiny_text_model())
    student.model.model.layers[0].mlp = OneExpert()
    assert bypassed_layers(student) == set()


def test_looking_changes_neither_modes_nor_statistics_nor_random_numbers() -> None:
    student = fresh(tiny_llava())
    statistics = add_statistics(student)
    student.model.model.language_model.layers[0].train()
    modes = [module.training for module in student.model.modules()]
    classes, state = [type(module) for module in student.model.modules()], torch.get_rng_state()
    mean = statistics.running_mean.clone()
    assert bypassed_layers(student) == set()
    assert [module.training for module in student.model.modules()] == modes
    assert [type(module) for module in student.model.modules()] == classes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(statistics.running_mean, mean)


def test_a_weight_that_stands_in_several_places_gets_one_pair_of_matrices() -> None:
    student = tiny("zamba")
    learning = prepare_parts(student, Trainable(language=Lora(rank=2)), seed=0)
    wrapped = {
        name: one
        for name, one in student.model.named_modules(remove_duplicate=False)
        if isinstance(one, LoraLayer)
    }
    weights = {one.get_base_layer().weight for one in wrapped.values()}
    assert len(weights) < len(wrapped)
    assert len(learning) == 2 * len(weights)
