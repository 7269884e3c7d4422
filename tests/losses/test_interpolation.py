"""TAID: the interpolated target against its formula, and the t that moves it, with the toy values."""

import json
from dataclasses import replace

import pytest
import torch
from loss_batches import LARGE, TEACHER, as_floats, random_batch, run, select, toy_batch
from loss_oracle import DIVERGENCES, name_of, plain_divergence

from vlm_distill.errors import ConfigError
from vlm_distill.losses import (
    TAID,
    AdaptiveInterpolation,
    AdaptiveKL,
    Clock,
    CrossEntropy,
    ForwardKL,
    Interpolated,
    Objective,
    Schedule,
    SkewKL,
    Term,
)

LOSSES = [2.0, 1.8, 1.9, 1.5, 1.5]


def taid_schedule() -> AdaptiveInterpolation:
    return AdaptiveInterpolation("taid", t_start=0.4, t_end=1.0, alpha=5e-4, beta=0.99)


def run_schedule(schedule: AdaptiveInterpolation, num_steps: int, losses=LOSSES) -> list[float]:
    values = []
    for step, loss in enumerate(losses):
        clock = Clock(step=step, fraction=step / num_steps)
        schedule.update({"taid_sum": 6 * loss, "taid_count": 6.0}, clock)
        values.append(schedule.value(clock))
    return values


def test_loss_and_gradient_have_the_toy_values() -> None:
    batch = toy_batch([TEACHER, TEACHER])
    result = run(TAID().build(), batch)
    (gradient,) = torch.autograd.grad(result.loss, batch[0].hidden)
    assert result.loss.item() == pytest.approx(2.6571550, abs=1e-6)
    assert gradient.norm().item() == pytest.approx(0.1306700, abs=1e-6)


def test_forward_kl_has_the_same_gradient_and_the_entropy_less() -> None:
    batch = toy_batch([TEACHER, TEACHER])
    losses = [run(TAID(divergence=d).build(), batch).loss for d in (CrossEntropy(), ForwardKL())]
    gradients = [torch.autograd.grad(loss, batch[0].hidden)[0] for loss in losses]
    torch.testing.assert_close(*gradients)
    p = (0.6 * batch[0].hidden.detach() + 0.4 * batch[1].hidden).softmax(-1)
    entropy = -(p * p.log()).sum(-1).mean()
    torch.testing.assert_close(losses[0] - losses[1], entropy)


@pytest.mark.parametrize("byte_budget", [1, LARGE])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=name_of)
def test_every_divergence_composes_with_the_target(divergence, byte_budget: int) -> None:
    batch = random_batch([3, 2], authors=[TEACHER, TEACHER])
    target = Interpolated(t=0.3)
    term = Term(name="x", divergence=divergence, target=target, author="teacher", reduction="token")
    loss = run(Objective([term]), batch, byte_budget=byte_budget).loss
    (gradient,) = torch.autograd.grad(loss, batch[0].hidden)
    leaf = batch[0].hidden.detach().requires_grad_()
    mixed = 0.7 * leaf.detach() + 0.3 * batch[1].hidden
    plain = plain_divergence(divergence, leaf, mixed).mean()
    torch.testing.assert_close(loss.detach(), plain.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(plain, leaf)[0])


def test_at_t_one_the_target_is_the_teacher() -> None:
    batch = random_batch([3, 2], authors=[TEACHER, TEACHER])
    target = Interpolated(t=1.0)
    plain = Term(name="x", divergence=SkewKL(), author="teacher")
    losses = [run(Objective([term]), batch).loss for term in (plain, replace(plain, target=target))]
    assert torch.equal(*losses)


def test_a_token_that_one_model_lacks_is_impossible_for_the_target() -> None:
    student, teacher, responses = random_batch([1], authors=[TEACHER])
    bias = torch.zeros(7, dtype=torch.float64)
    bias[(responses.labels[0] + 1) % 7] = -torch.inf
    lacking = replace(student, head=replace(student.head, bias=bias))
    for other in (teacher, replace(teacher, head=replace(teacher.head, bias=bias))):
        for divergence in (CrossEntropy(), ForwardKL(), AdaptiveKL()):
            loss = run(TAID(divergence=divergence).build(), (lacking, other, responses)).loss
            (gradient,) = torch.autograd.grad(loss, student.hidden)
            assert loss.isfinite()
            assert gradient.isfinite().all()


def test_t_follows_the_toy_losses() -> None:
    assert run_schedule(taid_schedule(), 100) == pytest.approx([0.4, 0.406, 0.412, 0.418, 0.424], abs=1e-9)
    far = [0.4, 0.400150075, 0.400300070, 0.400450185, 0.400600261]
    assert run_schedule(taid_schedule(), 10**6) == pytest.approx(far, abs=1e-9)


def test_t_never_falls_and_never_passes_its_end() -> None:
    schedule = AdaptiveInterpolation("taid", t_start=0.2, t_end=0.9, alpha=0.5, beta=0.5)
    values = run_schedule(schedule, 40, losses=[1.0 + (-1) ** step * step / 10 for step in range(40)])
    assert values == sorted(values)
    assert values[-1] == 0.9


def test_a_loss_that_rises_from_zero_leaves_t_where_it_is() -> None:
    schedule = TAID(alpha=0.5, beta=0.5).build().terms[0].target.t
    values = run_schedule(schedule, 1000, losses=[0.0, 3.0, 3.0])
    assert values == pytest.approx([0.4, 0.4006, 0.4012])


def test_a_step_without_responses_changes_nothing() -> None:
    schedule = taid_schedule()
    run_schedule(schedule, 100)
    before = schedule.state_dict()
    schedule.update({"taid_sum": 0.0, "taid_count": 0.0}, Clock(step=5, fraction=0.9))
    assert schedule.state_dict() == before


@pytest.mark.parametrize("num_losses", [0, 1, 3])
def test_schedule_state_survives_json(num_losses: int) -> None:
    schedule, restored = taid_schedule(), taid_schedule()
    run_schedule(schedule, 100, losses=LOSSES[:num_losses])
    restored.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
    assert run_schedule(restored, 10**6) == run_schedule(schedule, 10**6)
    assert isinstance(schedule, Schedule)


def test_the_objective_steers_t_by_its_mean_loss_and_saves_it() -> None:
    batch = random_batch([3, 2], authors=[TEACHER, TEACHER])
    objective = TAID(t_start=0.2).build()
    alone = AdaptiveInterpolation("taid", t_start=0.2, t_end=1.0, alpha=5e-4, beta=0.99)
    objective.start_round(1)
    for step in range(4):
        metrics = as_floats(run(objective, batch).metrics)
        view = objective.metrics_view(metrics)
        assert view["taid_t"] == pytest.approx(alone.value(objective.clock))
        assert view["taid"] == pytest.approx(view["loss"])
        alone.update({"taid_sum": view["taid"], "taid_count": 1.0}, objective.clock)
        objective.update(metrics, fraction=(step + 1) / 10)
    assert view["taid_t"] > 0.2
    resumed = TAID(t_start=0.2).build()
    resumed.load_state_dict(json.loads(json.dumps(objective.state_dict())))
    assert torch.equal(run(resumed, batch).loss, run(objective, batch).loss)
    assert resumed.state_dict() == objective.state_dict()


def test_micro_batches_with_shared_denominators_add_up_to_the_whole_batch() -> None:
    batch, objective = random_batch([3, 5, 1], authors=[TEACHER] * 3), TAID(divergence=SkewKL()).build()
    whole = run(objective, batch)
    parts = [select(batch, keep) for keep in ([0], [1, 2])]
    results = [run(objective, part, denominators=objective.counts(batch[2])) for part in parts]
    torch.testing.assert_close(sum(result.loss for result in results), whole.loss)
    merged = {name: sum(result.metrics[name].item() for result in results) for name in whole.metrics}
    assert objective.metrics_view(merged) == pytest.approx(objective.metrics_view(as_floats(whole.metrics)))


@pytest.mark.parametrize(
    "options",
    [
        {"t_start": 0.0},
        {"t_start": 0.9, "t_end": 0.8},
        {"t_end": 1.1},
        {"alpha": -1.0},
        {"alpha": float("inf")},
        {"beta": 1.0},
    ],
)
def test_impossible_schedules_are_config_errors(options: dict) -> None:
    with pytest.raises(ConfigError, match="taid: expected"):
        TAID(**options)
