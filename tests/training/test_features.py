"""Training features: LoRA, gradient checkpointing, DPO's reference, trackers, precision, a full disk."""

import json
import math
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from tests.stages import assert_same, config, make_items, make_stage, stop_after, weights
from tests.tiny import fresh, tiny_text_model
from vlm_distill.errors import ConfigError, DataError
from vlm_distill.losses import DPO, SimPER
from vlm_distill.models.lora import Lora
from vlm_distill.training.checkpoint import load_latest
from vlm_distill.training.config import Trainable
from vlm_distill.training.reference import reference_log_probs
from vlm_distill.training.train import train
from vlm_distill.training.trainer import Trainer

LORA = Trainable(vision="frozen", projector="full", language=Lora(rank=2, alpha=4))


def test_lora_trains_few_parameters_and_leaves_a_plain_model(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    before = weights(stage.student)
    train(config(steps=3, trainable=LORA), stage, log=print)
    after = weights(stage.student)
    assert after.keys() == before.keys()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert any("language_model" in name for name in moved)
    assert not any("norm" in name or "vision_tower" in name or "embed" in name for name in moved)
    assert (stage.folder / "model" / "model.safetensors").is_file()


def test_a_killed_lora_stage_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path) -> None:
    settings = config(trainable=LORA)
    whole = make_stage(tmp_path / "whole")
    train(settings, whole, log=print)
    stop_after(Trainer(settings, make_stage(tmp_path / "cut"), print), 5)
    saved = load_latest(tmp_path / "cut" / "checkpoints", key="key", log=print)
    assert saved is not None
    assert all("lora" in name or "projector" in name for name in saved.weights)
    again = make_stage(tmp_path / "cut")
    train(settings, again, log=print)
    assert_same(weights(whole.student), weights(again.student))


def test_gradient_checkpointing_changes_nothing_but_memory(tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        stage = make_stage(
            tmp_path / str(checkpointing),
            student=fresh(tiny_text_model(0)),
            teacher=tiny_text_model(1, hidden_size=32),
            items=make_items(num_images=0),
        )
        train(config(steps=3, gradient_checkpointing=checkpointing), stage, log=print)
        found.append(weights(stage.student))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-4, atol=1e-6)


def test_reference_log_probs_are_those_of_the_starting_student_and_resume(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, objective=DPO(reference="start").build())
    found = reference_log_probs(stage, config(), log=print)
    assert len(found) == 12
    assert all(value < 0 for value in found.values())
    path = next(tmp_path.glob("reference_*.jsonl"))
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:3]) + '\n{"id": "cut sho')
    said: list[str] = []
    assert reference_log_probs(stage, config(), log=said.append) == pytest.approx(found, rel=1e-6)
    assert "5 prompts to score" in said[0]


@pytest.fixture
def _new_accelerator() -> Iterator[None]:
    """Let a test have another precision: accelerate keeps one for the life of a process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("_new_accelerator")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_reference_is_in_the_precision_of_training(tmp_path: Path, precision: str) -> None:
    settings = {"steps": 1, "precision": precision, "batch_size": 6, "micro_batch_size": 6}
    objective = DPO(reference="start").build()
    values = reference_log_probs(make_stage(tmp_path, objective=objective), config(**settings), log=print)
    stage = make_stage(tmp_path, objective=objective, reference_log_probs=values)
    trainer = Trainer(config(**settings), stage, print)
    # No margin yet: -log sigmoid(0).
    assert trainer.optimizer_step()["loss_sum"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("objective", [DPO(reference="start"), DPO(reference="teacher"), SimPER()])
def test_preference_objectives_raise_the_teachers_response_over_the_students(
    tmp_path: Path, objective
) -> None:
    stage = make_stage(tmp_path, objective=objective.build())
    if stage.objective.needs_reference_model:
        values = reference_log_probs(stage, config(), log=print)
        stage = make_stage(tmp_path, objective=objective.build(), reference_log_probs=values)
    train(config(steps=20, learning_rate=3e-3), stage, log=print)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]


def test_fp16_on_a_cpu_and_unknown_trackers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fp16 needs an accelerator"):
        Trainer(config(precision="fp16"), make_stage(tmp_path), print)
    with pytest.raises(ConfigError, match=r"train\.trackers: 'nonsense'"):
        Trainer(config(trackers=["nonsense"]), make_stage(tmp_path), print)


def test_tensorboard_gets_the_metrics(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(config(steps=3, trackers=["tensorboard"]), make_stage(tmp_path), log=print)
    events = EventAccumulator(str(next(tmp_path.rglob("events.out*")).parent)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]


def test_a_full_disk_is_reported_and_the_previous_checkpoint_continues(tmp_path: Path) -> None:
    whole = make_stage(tmp_path / "whole")
    train(config(steps=9), whole, log=print)
    trainer = Trainer(config(steps=9), make_stage(tmp_path / "cut"), print)
    real, limits = trainer._save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(folder: Path, keep_last: int) -> None:
        if trainer.step >= 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        real(folder, keep_last)

    trainer._save = save
    try:
        with pytest.raises(DataError, match=r"step_00000004: cannot be written .*step_00000002 is kept"):
            trainer.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step_00000002"]
    again = make_stage(tmp_path / "cut")
    train(config(steps=9), again, log=print)
    assert_same(weights(whole.student), weights(again.student))
