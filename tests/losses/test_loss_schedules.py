"""Weight schedules and the alpha curriculum, with the toy values of methods.md section 2."""

import json

import pytest
import torch

from vlm_distill.losses import Clock, Constant, Linear, Schedule, SkewCurriculum

ROUND_ONE = Clock(round=1, step=3, fraction=0.3)
ROUND_TWO = Clock(round=2)


def trained(author: str = "teacher", *, gap_sum: float = 20.0, count: float = 100.0) -> SkewCurriculum:
    curriculum = SkewCurriculum(author, initial=0.1)
    curriculum.update({f"gap_{author}_sum": gap_sum, f"gap_{author}_count": count}, ROUND_ONE)
    return curriculum


def test_constant_never_changes() -> None:
    assert {
        Constant(constant=0.3).value(Clock(round=r, step=s, fraction=s / 9)) for r in (1, 2) for s in (0, 8)
    } == {0.3}


def test_linear_runs_over_its_fraction_then_stays_and_restarts_every_round() -> None:
    beta = Linear(start=0.5, end=0.75, fraction=0.5)
    for round in (1, 2, 5):
        values = [beta.value(Clock(round=round, step=step, fraction=step / 8)) for step in range(9)]
        assert values == pytest.approx([0.5, 0.5625, 0.625, 0.6875, 0.75, 0.75, 0.75, 0.75, 0.75])


def test_linear_without_restart_stays_at_its_end_after_the_first_round() -> None:
    beta = Linear(start=0.5, end=1.0, fraction=2 / 3, restart=False)
    values = [beta.value(Clock(step=step, fraction=step / 6)) for step in range(6)]
    assert values == pytest.approx([0.5, 0.625, 0.75, 0.875, 1.0, 1.0])
    assert beta.value(Clock(round=2)) == 1.0


def test_schedules_satisfy_the_protocol() -> None:
    assert isinstance(Linear(start=0.0, end=1.0), Schedule)
    assert isinstance(Constant(constant=1.0), Schedule)


def test_alpha_has_the_toy_values() -> None:
    gaps = torch.tensor([0.1, 0.19, 0.2, 0.3, 0.0, -0.1], dtype=torch.float64)
    alphas = trained().alphas(gaps, ROUND_TWO)
    assert alphas.tolist() == pytest.approx([0.01, 0.052681, 0.1, 0.1, 0.01, 0.01], abs=1e-6)


def test_alpha_keeps_its_initial_value_in_round_one_and_for_a_mean_gap_that_is_not_positive() -> None:
    gaps = torch.tensor([-0.1, 0.0, 0.1])
    for curriculum, clock in (
        (trained(), ROUND_ONE),
        (trained(gap_sum=0.0), ROUND_TWO),
        (trained(gap_sum=-5.0), ROUND_TWO),
        (SkewCurriculum("teacher", initial=0.1), ROUND_TWO),
    ):
        assert not curriculum.adapts(clock)
        assert curriculum.alphas(gaps, clock).tolist() == pytest.approx([0.1, 0.1, 0.1])


def test_the_gap_changes_sign_between_the_sides() -> None:
    student, teacher = torch.tensor([0.2, 0.6]).log(), torch.tensor([0.5, 0.1]).log()
    torch.testing.assert_close(trained("teacher").gaps(student, teacher), torch.tensor([0.3, -0.5]))
    torch.testing.assert_close(trained("student").gaps(student, teacher), torch.tensor([-0.3, 0.5]))


def test_the_mean_gap_is_over_responses_of_round_one_only() -> None:
    curriculum = SkewCurriculum("student", initial=0.1)
    for gap_sum, count, round in ((1.0, 10.0, 1), (2.0, 2.0, 1), (100.0, 1.0, 2)):
        metrics = {"gap_student_sum": gap_sum, "gap_student_count": count}
        curriculum.update(metrics, Clock(round=round))
    assert curriculum.mean_gap == pytest.approx(3.0 / 12.0)


def test_curriculum_state_survives_json() -> None:
    restored = SkewCurriculum("teacher", initial=0.1)
    restored.load_state_dict(json.loads(json.dumps(trained().state_dict())))
    assert restored.mean_gap == trained().mean_gap
    assert restored.adapts(ROUND_TWO)
