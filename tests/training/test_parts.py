from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.stages import config, make_stage
from tests.tiny import add_statistics, fresh, tiny_llava, tiny_text_model
from tests.tiny_families import FAMILIES
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.errors import AdapterError
from vlm_distill.models.gradient_checkpointing import recompute_activations
from vlm_distill.models.lora import Lora
from vlm_distill.training.config import Trainable
from vlm_distill.training.parts import prepare_parts, training_mode
from vlm_distill.training.trainer import Trainer

LORA = Lora(rank=2, alpha=4)


def modes(loaded: LoadedModel, prefix: str) -> set[bool]:
    return {module.training for name, module in loaded.model.named_modules() if f"{name}.".startswith(prefix)}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_prefix_of_the_known_families_names_parameters(family: str) -> None:
    assert prepare_parts(fresh(FAMILIES[family]()), Trainable(), seed=0)


@pytest.mark.parametrize(
    "parts",
    [
        {
            "vision": ("model.tower.",),
            "projector": ("model.multi_modal_projector.",),
            "language": ("lm_head.",),
        },
        {"vision": ("model.vision_tower.", "model.tower."), "language": ("lm_head.",)},
    ],
)
def test_a_prefix_that_matches_no_parameter_is_refused_and_names_what_is_there(parts: dict) -> None:
    student = fresh(tiny_llava())
    student = replace(student, adapter=replace(student.adapter, parts=parts))
    found = "found model.vision_tower, model.multi_modal_projector, model.language_model"
    with pytest.raises(AdapterError, match=rf"parts\.vision of family 'llava': .*'model\.tower\.', {found}"):
        prepare_parts(student, Trainable(vision="frozen"), seed=0)


def test_a_component_that_no_config_can_name_is_refused() -> None:
    student = fresh(tiny_text_model())
    student = replace(student, adapter=replace(student.adapter, parts={"audio": ("model.",)}))
    with pytest.raises(AdapterError, match=r"parts\.audio of family .* one of vision, projector, language"):
        prepare_parts(student, Trainable(), seed=0)


@pytest.mark.parametrize("treatment", ["frozen", LORA])
def test_a_treatment_of_a_component_that_a_text_model_lacks_is_refused(treatment: object) -> None:
    student = fresh(tiny_text_model())
    with pytest.raises(
        AdapterError, match=r"train\.trainable\.vision: .* no such component.* known: language"
    ):
        prepare_parts(student, Trainable(vision=treatment), seed=0)
    assert prepare_parts(student, Trainable(vision="full"), seed=0)


def test_frozen_components_are_in_eval_mode_and_the_others_train() -> None:
    student = fresh(tiny_llava())
    training_mode(student, Trainable(vision="frozen", language=LORA))
    assert modes(student, "model.vision_tower.") == {False}
    assert modes(student, "model.multi_modal_projector.") == modes(student, "model.language_model.") == {True}
    training_mode(student, Trainable())
    assert modes(student, "model.vision_tower.") == {True}


def test_a_projector_inside_a_frozen_tower_trains() -> None:
    student = fresh(FAMILIES["qwen2_5_vl"]())
    training_mode(student, Trainable(vision="frozen"))
    assert modes(student, "model.visual.blocks.") == {False}
    assert modes(student, "model.visual.merger.") == {True}


def test_a_frozen_language_model_recomputes_its_activations_and_drops_nothing_out() -> None:
    student = fresh(tiny_llava())
    recompute_activations(student.model)
    training_mode(student, Trainable(vision="frozen", language="frozen"))
    assert modes(student, "model.vision_tower.") == {False}
    layers = student.model.model.language_model.layers
    assert all(layer.training for layer in layers)
    assert {module.training for layer in layers for module in layer.modules() if module is not layer} == {
        False
    }


@pytest.mark.parametrize(("vision", "moves"), [("frozen", False), (LORA, False), ("full", True)])
def test_running_statistics_move_where_the_weights_learn_only(
    tmp_path: Path, vision: object, moves: bool
) -> None:
    student = fresh(tiny_llava())
    statistics = add_statistics(student)
    before = statistics.running_mean.clone()
    stage = make_stage(tmp_path, student=student)
    Trainer(config(trainable=Trainable(vision=vision)), stage, print).optimizer_step()
    assert (not torch.equal(statistics.running_mean, before)) is moves
