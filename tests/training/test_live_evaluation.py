import json
from pathlib import Path

import pytest

from tests.stages import assert_same, config, make_stage, stop_after, weights
from vlm_distill.errors import ConfigError
from vlm_distill.training.config import TrainConfig
from vlm_distill.training.early_stop import EarlyStop
from vlm_distill.training.step import HELD_OUT_KL, Stage
from vlm_distill.training.train import train
from vlm_distill.training.trainer import Trainer


def stage_with(folder: Path, values: dict[int, float]) -> tuple[Stage, dict[int, dict[str, object]]]:
    """Return a stage whose evaluations find `values` in turn, and the student's weights at each."""
    seen: dict[int, dict[str, object]] = {}
    left = list(values.values())

    def evaluate() -> dict[str, float]:
        seen[len(seen)] = weights(stage.student)
        return {HELD_OUT_KL: left.pop(0)}

    stage = make_stage(folder, evaluate=evaluate)
    return stage, seen


def test_the_live_student_is_measured_every_so_many_steps_and_at_the_end(tmp_path: Path) -> None:
    stage, _ = stage_with(tmp_path, {2: 0.5, 4: 0.4, 5: 0.3})
    train(config(steps=5, evaluate_every=2), stage, log=print)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {row["step"]: row[HELD_OUT_KL] for row in rows if HELD_OUT_KL in row} == {2: 0.5, 4: 0.4, 5: 0.3}


def test_early_stop_ends_with_the_student_of_the_lowest_held_out_kl(tmp_path: Path) -> None:
    stage, seen = stage_with(tmp_path, {1: 0.5, 2: 0.3, 3: 0.4, 4: 0.35, 5: 0.1})
    lines: list[str] = []
    trained = train(config(steps=9, evaluate_every=1, patience=2), stage, log=lines.append)
    assert trained.steps == 4
    assert_same(weights(stage.student), seen[1])
    assert any("with the student of step 2" in line for line in lines)
    assert not (tmp_path / "best").exists()


def test_early_stop_goes_on_counting_after_a_kill(tmp_path: Path) -> None:
    settings = config(steps=9, evaluate_every=1, patience=2, checkpoint_every=1)
    whole, _ = stage_with(tmp_path / "whole", {1: 0.5, 2: 0.3, 3: 0.4, 4: 0.35})
    train(settings, whole, log=print)
    cut, _ = stage_with(tmp_path / "cut", {1: 0.5, 2: 0.3, 3: 0.4})
    stop_after(Trainer(settings, cut, print), 3)
    again, _ = stage_with(tmp_path / "cut", {4: 0.35})
    assert train(settings, again, log=print).steps == 4
    assert_same(weights(whole.student), weights(again.student))


def test_patience_without_evaluations_and_evaluations_without_a_teacher_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="evaluate_every"):
        TrainConfig(steps=1, patience=2)
    with pytest.raises(ConfigError, match="nothing to evaluate on"):
        Trainer(config(evaluate_every=2), make_stage(tmp_path), print)


def test_the_counter_survives_json_before_the_first_evaluation() -> None:
    first, second = EarlyStop(patience=1), EarlyStop(patience=1)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert first == second
    assert second.observe(3.0, step=1)
    assert not second.observe(3.0, step=2)
    assert second.stops
