from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from tests.stages import config, load_images, make_items, make_stage
from tests.tiny import add_statistics, fresh, tiny_llava, tiny_text_model
from tests.tiny_families import FAMILIES
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.errors import AdapterError
from vlm_distill.forward import unshared_hidden
from vlm_distill.losses import DPO
from vlm_distill.models.gradient_checkpointing import recompute_activations
from vlm_distill.models.lora import Lora
from vlm_distill.training.config import Trainable
from vlm_distill.training.items import collate
from vlm_distill.training.parts import prepare_parts, training_mode
from vlm_distill.training.reference import reference_log_probs
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


class Dropping(nn.Module):
    """A layer around another that drops values out by its own mode, as older decoder layers do."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: torch.Tensor, **options: object) -> torch.Tensor:
        return torch.dropout(self.layer(hidden, **options), 0.5, self.training)


class DroppingLayer(GradientCheckpointingLayer, Dropping):
    pass


def noisy_llava() -> LoadedModel:
    """Return a LLaVA whose tower normalises over the batch, and which drops values out everywhere."""
    student = fresh(tiny_llava())
    add_statistics(student)
    tower, language = student.model.model.vision_tower, student.model.model.language_model
    tower.dropped = nn.Dropout(0.5)
    embeddings = next(module for name, module in tower.named_modules() if name.endswith("embeddings"))
    embeddings.register_forward_hook(lambda module, args, states: tower.dropped(states))
    language.layers[0] = DroppingLayer(language.layers[0])
    student.model.eval()
    return student


def hidden_of(loaded: LoadedModel) -> torch.Tensor:
    batch = collate(make_items(3), student=loaded, teacher=None, load_images=load_images)
    # With a graph, without which nothing is recomputed.
    return unshared_hidden(loaded, batch.student_prompts, batch.responses).detach()


def images_of(loaded: LoadedModel) -> torch.Tensor:
    pictures = [load_images(item.example) for item in make_items(3)]
    pixels = loaded.encode([item.example for item in make_items(3)], pictures).extras["pixel_values"]
    with torch.no_grad():
        return loaded.adapter.image_features(loaded.model, pixels)


@pytest.mark.parametrize("language", ["full", LORA])
@pytest.mark.parametrize("recomputes", [False, True])
def test_a_frozen_tower_says_in_training_what_it_says_in_evaluation_before_and_after(
    tmp_path: Path, language: object, recomputes: bool
) -> None:
    student = noisy_llava()
    expected, buffers = images_of(student), dict(student.model.model.vision_tower.named_buffers())
    buffers = {name: value.clone() for name, value in buffers.items()}
    settings = config(
        trainable=Trainable(vision="frozen", language=language), gradient_checkpointing=recomputes
    )
    trainer = Trainer(settings, make_stage(tmp_path, student=student), print)
    trainer.optimizer_step()
    assert torch.equal(images_of(student), expected)
    assert modes(student, "model.vision_tower.") == {False}
    assert modes(student, "model.language_model.layers.1.") == {True}
    for name, value in student.model.model.vision_tower.named_buffers():
        assert torch.equal(value, buffers[name]), name


@pytest.mark.parametrize("recomputes", [False, True])
def test_frozen_layers_drop_nothing_out_in_their_own_forward(tmp_path: Path, recomputes: bool) -> None:
    student = noisy_llava()
    expected = hidden_of(student)
    settings = config(
        trainable=Trainable(vision="frozen", language="frozen"), gradient_checkpointing=recomputes
    )
    trainer = Trainer(settings, make_stage(tmp_path, student=student), print)
    torch.testing.assert_close(hidden_of(student), expected)
    trainer.optimizer_step()
    layer = student.model.model.language_model.layers[0]
    assert layer.training is recomputes
    assert not torch.equal(hidden_of(student), expected)  # the projector has learnt


def test_a_live_teacher_says_the_same_before_during_and_after_training(tmp_path: Path) -> None:
    teacher = noisy_llava()
    expected = hidden_of(teacher)
    trainer = Trainer(config(), make_stage(tmp_path, teacher=teacher), print)
    trainer.optimizer_step()
    assert modes(teacher, "") == {False}
    assert torch.equal(hidden_of(teacher), expected)


def test_the_reference_of_dpo_is_the_student_without_dropout(tmp_path: Path) -> None:
    student = noisy_llava()
    stage = make_stage(tmp_path, student=student, objective=DPO().build())
    Trainer(config(), stage, print)  # puts the student into training mode
    scored = [reference_log_probs(replace(stage, key=key), config(), log=print) for key in ("a", "b")]
    assert scored[0] == scored[1]
    assert student.model.training
