import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.stages import assert_same, config, make_items, make_stage, response, stop_after, weights
from tests.tiny import add_statistics, example, fresh, tiny_llava, tiny_text_model, with_places
from vlm_distill import stopping
from vlm_distill.alignment.alignment import ALL_IDS, Alignment
from vlm_distill.batches import TrainItem
from vlm_distill.errors import AdapterError, ConfigError, DataError
from vlm_distill.losses import SFT, DistiLLM2, IdList, IdRange, SeqKD
from vlm_distill.models.feature_store import FeatureStore, VisionCacheConfig
from vlm_distill.models.vision_cache import with_vision_cache
from vlm_distill.stopping import Interrupted, handled, patiently
from vlm_distill.training.budget import Budget, learning_rate
from vlm_distill.training.config import Trainable, TrainConfig
from vlm_distill.training.metrics import THROUGHPUT
from vlm_distill.training.parts import prepare_parts
from vlm_distill.training.step import HELD_OUT_KL, Stage
from vlm_distill.training.train import finished, train
from vlm_distill.training.trainer import Trainer


@pytest.mark.parametrize(
    "objective", [DistiLLM2(), DistiLLM2(preset="released"), SeqKD()], ids=["paper", "released", "seqkd"]
)
def test_gradients_do_not_depend_on_how_a_step_is_cut_into_micro_batches(tmp_path: Path, objective) -> None:
    gradients = []
    for size in (6, 4, 1):
        # In float64, so that a wrong denominator cannot hide behind the rounding of other padding.
        student, teacher = fresh(tiny_llava(0)), fresh(tiny_llava(1, hidden_size=32))
        student.model.double()
        teacher.model.double()
        stage = make_stage(
            tmp_path / str(size), student=student, teacher=teacher, objective=objective.build()
        )
        # Learning rate 0 is not allowed; a clip far above the norm leaves gradients alone, and they are read
        # before the step.
        trainer = Trainer(config(batch_size=6, micro_batch_size=size, max_grad_norm=1e9), stage, print)
        trainer.optimizer.zero_grad = lambda: None
        loss = trainer.optimizer_step()["loss_sum"]
        gradients.append((loss, [parameter.grad for parameter in stage.student.model.parameters()]))
    for loss, found in gradients[1:]:
        assert loss == pytest.approx(gradients[0][0], rel=1e-7)
        for value, expected in zip(found, gradients[0][1], strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-12)


def test_a_teacher_that_has_the_tokens_at_other_ids_of_its_output_layer_trains_the_same_student(
    tmp_path: Path,
) -> None:
    teacher = tiny_text_model(1, hidden_size=32)
    places = torch.randperm(len(teacher.head.weight), generator=torch.Generator().manual_seed(0))
    moved = Alignment(route="moved", student=IdRange(), teacher=IdList(ids=places))
    trained = []
    for one, alignment in ((fresh(teacher), ALL_IDS), (with_places(teacher, places), moved)):
        student = fresh(tiny_text_model(0))
        student.model.double(), one.model.double()
        stage = make_stage(
            tmp_path / alignment.route,
            student=student,
            teacher=one,
            alignment=alignment,
            items=make_items(num_images=0),
        )
        train(config(), stage, log=print)
        trained.append(weights(student))
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, rtol=0, atol=1e-9)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    train(config(steps=30), make_stage(tmp_path), log=print)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_a_run_killed_between_checkpoints_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path) -> None:
    whole = make_stage(tmp_path / "whole")
    train(config(), whole, log=print)
    stop_after(Trainer(config(), make_stage(tmp_path / "cut"), print), 5)
    lines: list[str] = []
    again = make_stage(tmp_path / "cut")
    train(config(), again, log=lines.append)
    assert "test: continuing after step 4, 67% done" in lines
    assert_same(weights(whole.student), weights(again.student))
    assert whole.objective.state_dict() == again.objective.state_dict()
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_running_statistics_of_what_learns_go_on_after_a_kill(tmp_path: Path) -> None:
    ends = []
    for name in ("whole", "cut"):
        for steps in (5, None) if name == "cut" else (None,):
            student = fresh(tiny_llava())
            statistics = add_statistics(student)
            trainer = Trainer(config(), make_stage(tmp_path / name, student=student), print)
            trainer.run() if steps is None else stop_after(trainer, steps)
        assert statistics.num_batches_tracked > 0
        ends.append(weights(student))
    assert_same(*ends)


def logged(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != THROUGHPUT} for line in lines]


def signal_before(trainer: Trainer, step: int) -> None:
    real = trainer.optimizer_step

    def optimizer_step() -> dict[str, float]:
        if trainer.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real()

    trainer.optimizer_step = optimizer_step


@pytest.mark.parametrize("patience", [None, 2])
def test_a_stage_that_signals_end_at_any_step_logs_and_learns_what_an_undisturbed_one_does(
    tmp_path: Path, patience: int | None
) -> None:
    settings = config(steps=17, checkpoint_every=5, log_every=3, evaluate_every=7, patience=patience)

    def stage_in(folder: Path) -> Stage:
        stage = make_stage(folder)
        # Another value at every step; the lowest one is that of step 7.
        measured = {7: 0.1, 14: 0.2, 17: 0.3}
        trainers: list[Trainer] = []
        stage = replace(stage, evaluate=lambda: {HELD_OUT_KL: measured[trainers[-1].step]})
        trainers.append(Trainer(settings, stage, lines.append))
        started[folder] = trainers[-1]
        return stage

    lines: list[str] = []
    started: dict[Path, Trainer] = {}
    whole = stage_in(tmp_path / "whole")
    started[tmp_path / "whole"].run()
    rough = tmp_path / "rough"
    with handled():
        # Twice within one window of the log, and where a checkpoint, a line and an evaluation are due.
        for step in (0, 1, 4, 6, 8, 13, 15):
            stage_in(rough)
            signal_before(started[rough], step)
            with patiently_ended(f"test: stopped after step {step + 1} of 17; checkpoint in "):
                started[rough].run()
    again = stage_in(rough)
    started[rough].run()
    assert "test: continuing after step 16, 94% done" in lines
    assert_same(weights(whole.student), weights(again.student))
    assert [row["step"] for row in logged(rough)] == [3, 6, 7, 9, 12, 14, 15, 17]
    assert logged(rough) == logged(tmp_path / "whole")


@contextmanager
def patiently_ended(line: str) -> Iterator[None]:
    with pytest.raises(Interrupted, match=line), patiently():
        yield
    # The next start is another process.
    stopping._request.signal = 0


def test_a_stage_that_ends_with_the_step_of_the_signal_is_finished(tmp_path: Path) -> None:
    trainer = Trainer(config(), make_stage(tmp_path), print)
    signal_before(trainer, 5)
    with handled(), patiently_ended("^$"):
        trainer.run()
        assert trainer.ended


def test_the_newest_checkpoint_is_kept_beside_a_damaged_later_one(tmp_path: Path) -> None:
    settings = config(keep_last=1, checkpoint_every=3)
    stop_after(Trainer(settings, make_stage(tmp_path), print), 4)
    damaged = tmp_path / "checkpoints" / "step_00000003"
    (damaged / "model.safetensors").write_bytes(b"")
    again = Trainer(settings, make_stage(tmp_path), print)
    assert again.step == 0
    signal_before(again, 1)
    with handled(), patiently_ended("after step 2 of 6"):
        again.run()
    assert Trainer(settings, make_stage(tmp_path), print).step == 2


def mixed_items(*images: int) -> list[TrainItem]:
    every = {number: make_items(len(images), num_images=number) for number in set(images)}
    return [every[number][index] for index, number in enumerate(images)]


def test_prompts_without_images_train_nothing_where_the_language_is_frozen(tmp_path: Path) -> None:
    trainable = Trainable(vision="frozen", language="frozen")
    alone, mixed = (
        make_stage(tmp_path / str(len(images)), items=mixed_items(*images))
        for images in ((1, 1), (1, 1, 0, 0))
    )
    gradients = []
    for stage in (alone, mixed):
        size = len(stage.items)
        trainer = Trainer(
            config(batch_size=size, micro_batch_size=1, trainable=trainable, max_grad_norm=1e9), stage, print
        )
        trainer.optimizer.zero_grad = lambda: None
        trainer.optimizer_step()
        named = stage.student.model.named_parameters()
        gradients.append({name: one.grad for name, one in named if one.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    # Divided by all tokens of the step, so of the same direction.
    for name, value in gradients[0].items():
        torch.testing.assert_close(
            gradients[1][name] / gradients[1][name].norm(), value / value.norm(), rtol=0, atol=1e-5
        )
    with pytest.raises(ConfigError, match="only parts that read images learn"):
        Trainer(config(trainable=trainable), make_stage(tmp_path / "text", items=mixed_items(0, 0)), print)


def test_a_damaged_last_checkpoint_is_reported_and_the_one_before_it_used(tmp_path: Path) -> None:
    stop_after(Trainer(config(), make_stage(tmp_path), print), 5)
    newest = tmp_path / "checkpoints" / "step_00000004" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"x")
    lines: list[str] = []
    assert Trainer(config(), make_stage(tmp_path), lines.append).step == 2
    assert any("model.safetensors is damaged" in line for line in lines)


def test_only_the_newest_checkpoints_are_kept_and_none_is_left_at_the_end(tmp_path: Path) -> None:
    stop_after(Trainer(config(steps=9, keep_last=2), make_stage(tmp_path), print), 8)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step_00000006",
        "step_00000008",
    ]
    train(config(steps=9), make_stage(tmp_path), log=print)
    assert not (tmp_path / "checkpoints").exists()


def test_a_checkpoint_of_another_model_or_config_is_refused(tmp_path: Path) -> None:
    stop_after(Trainer(config(), make_stage(tmp_path), print), 3)
    with pytest.raises(DataError, match="another student, teacher, data set or config"):
        Trainer(config(), make_stage(tmp_path, key="other"), print)


def test_a_finished_stage_is_found_again_under_its_key_only(tmp_path: Path) -> None:
    assert finished(tmp_path, key="key") is None
    trained = train(config(steps=2), make_stage(tmp_path), log=print)
    assert finished(tmp_path, key="key") == trained
    assert trained.tokens == sum(
        json.loads(line)["tokens"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()[-1:]
    )
    with pytest.raises(DataError, match="another start"):
        finished(tmp_path, key="other")


def test_frozen_components_do_not_move_and_the_others_do(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    before = weights(stage.student)
    train(config(steps=2, trainable=Trainable(vision="frozen", projector="frozen")), stage, log=print)
    after = weights(stage.student)
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith(("model.language_model.", "lm_head.")) for name in moved)
    with pytest.raises(AdapterError, match="at least one"):
        prepare_parts(
            stage.student, Trainable(vision="frozen", projector="frozen", language="frozen"), seed=0
        )


def test_text_pairs_train_with_the_same_code(tmp_path: Path) -> None:
    student = fresh(tiny_text_model(0))
    stage = make_stage(
        tmp_path, student=student, teacher=tiny_text_model(1, hidden_size=32), items=make_items(num_images=0)
    )
    before = weights(student)
    train(config(steps=2), stage, log=print)
    assert any(not torch.equal(value, before[name]) for name, value in weights(student).items())


def test_an_infinite_loss_stops_before_the_step_and_names_the_place(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    with torch.no_grad():
        stage.student.model.lm_head.weight[11] = float("nan")
    before = weights(stage.student)
    with pytest.raises(DataError, match=r"test, step 1: .*not finite"):
        train(config(), stage, log=print)
    for name, value in weights(stage.student).items():
        torch.testing.assert_close(value, before[name], equal_nan=True, rtol=0, atol=0)


def test_a_token_budget_ends_with_the_first_step_that_reaches_it(tmp_path: Path) -> None:
    items = make_items(6)
    total = sum(item.num_tokens for item in items)
    for tokens, steps in ((2 * total, 4), (2 * total + 1, 5)):
        settings = config(steps=None, tokens=tokens, batch_size=3)
        assert train(settings, make_stage(tmp_path / str(tokens)), log=print).steps == steps
    assert Budget.of(TrainConfig(epochs=1.5, batch_size=4), num_items=6).steps == 3
    empty = [replace(items[0], responses=(response("e0", "teacher", ()),))]
    with pytest.raises(DataError, match="every response is empty"):
        Trainer(config(), make_stage(tmp_path, items=empty, objective=SeqKD().build()), print)


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    def rates(settings: TrainConfig) -> list[float]:
        return [learning_rate(settings, before=step / 100, after=(step + 1) / 100) for step in range(100)]

    found = rates(TrainConfig(steps=100, learning_rate=1.0, warmup_ratio=0.1))
    assert found[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert max(found) == found[9] == found[10] == 1.0
    assert found[55] == pytest.approx(0.5)
    assert 0 < found[99] < 1e-3
    constant = TrainConfig(steps=100, learning_rate=1.0, warmup_ratio=0.0, schedule="constant")
    assert set(rates(constant)) == {1.0}


def test_sft_reads_references_and_no_teacher(tmp_path: Path) -> None:
    items = [
        TrainItem(
            example=example("e0", "?", num_images=1), responses=(response("e0", "reference", (10, 11)),)
        )
    ]
    stage = make_stage(tmp_path, objective=SFT().build(), items=items)
    trained = train(config(steps=2, batch_size=1), replace(stage, teacher=None), log=print)
    assert trained.tokens == 4


def test_a_tower_that_learns_is_refused_where_features_are_cached(tmp_path: Path) -> None:
    cache = FeatureStore(VisionCacheConfig(), folder=None, log=print)
    stage = make_stage(tmp_path, student=with_vision_cache(fresh(tiny_llava(0)), cache))
    with pytest.raises(ConfigError, match=r"train.trainable.vision: expected `frozen`"):
        Trainer(config(), stage, print)
    Trainer(config(trainable=Trainable(vision="frozen")), stage, print)
