"""Objectives on toy batches: reductions, micro-batches, both curricula, missing sides and saved state."""

import json
import logging
import math
from dataclasses import replace

import pytest
import torch
from loss_batches import (
    LARGE,
    REFERENCE,
    STUDENT,
    TEACHER,
    TOY_LABELS,
    as_floats,
    random_batch,
    run,
    select,
    toy_batch,
)
from loss_oracle import TOY_MASK

from vlm_distill.batches import Head
from vlm_distill.errors import ConfigError, DataError
from vlm_distill.losses import (
    SFT,
    DistiLLM2,
    ForwardKL,
    IdRange,
    NegativeLogLikelihood,
    Objective,
    OneHot,
    Rows,
    SeqKD,
    SkewKL,
    SkewReverseKL,
    Term,
    explain_non_finite,
)

METHODS = [DistiLLM2(), DistiLLM2(preset="released"), SeqKD(), SFT()]


def objective_in_round_two(mean_gap: float = 0.2, **options) -> Objective:
    objective = DistiLLM2(**options).build()
    state = objective.state_dict()
    state["clock"] = {"round": 2, "step": 0, "fraction": 0.0}
    for name in ("skl.skew", "srkl.skew"):
        state["schedules"][name] = {"gap_sum": mean_gap * 10, "gap_count": 10.0}
    objective.load_state_dict(state)
    return objective


@pytest.mark.parametrize("config", METHODS, ids=repr)
def test_says_whose_responses_it_trains_and_whether_it_reads_a_teacher(config) -> None:
    objective = config.build()
    expected = {"distillm2": {"teacher", "student"}, "sft": {"reference"}, "seqkd": {"teacher"}}
    assert objective.authors == expected[config.kind]
    assert objective.needs_teacher == (config.kind == "distillm2")


def test_sequence_reduction_has_the_toy_values() -> None:
    objective = DistiLLM2(preset="released").build()
    metrics = run(objective, toy_batch([TEACHER, STUDENT])).metrics
    view = objective.metrics_view(as_floats(metrics))
    assert view["skl"] == pytest.approx(1.5238223, abs=1e-6)
    assert view["srkl"] == pytest.approx(1.6496519, abs=1e-6)
    assert view["loss"] == pytest.approx(1.5238223 + 1.6496519, abs=1e-6)


@pytest.mark.parametrize(("preset", "weight"), [("paper", 0.5), ("released", 1.0)])
def test_only_the_released_preset_detaches_the_mixture(preset: str, weight: float) -> None:
    batch = random_batch([4], authors=[STUDENT])
    (gradient,) = torch.autograd.grad(run(DistiLLM2(preset=preset).build(), batch).loss, batch[0].hidden)
    leaf = batch[0].hidden.detach().requires_grad_()
    divergence = SkewReverseKL(detach_mixture=preset == "released")
    (expected,) = torch.autograd.grad(weight * divergence(leaf, batch[1].hidden).mean(), leaf)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(("divergence", "value"), [(ForwardKL(), 2.5918601), (SkewKL(), 1.5526724)])
def test_token_reduction_has_the_toy_values(divergence, value: float) -> None:
    objective = Objective([Term(name="kl", divergence=divergence, author="teacher", reduction="token")])
    assert run(objective, toy_batch([TEACHER, TEACHER])).loss.item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    ("reduction", "weights"), [("token", [1 / 6] * 6), ("sequence", [1 / 8] * 4 + [1 / 4] * 2)]
)
@pytest.mark.parametrize("config", [SFT, SeqKD])
def test_likelihood_is_weighted_by_its_reduction(config, reduction: str, weights: list[float]) -> None:
    author = REFERENCE if config is SFT else TEACHER
    student, _, responses = toy_batch([author, author])
    log_q = student.hidden.detach().softmax(-1).log()[torch.arange(6), TOY_LABELS[TOY_MASK]]
    loss = run(config(reduction=reduction).build(), (student, None, responses)).loss
    assert loss.item() == pytest.approx(-(log_q * torch.tensor(weights)).sum().item())


def test_both_reductions_differ_in_gradient_only_by_length_weights() -> None:
    gradients = {}
    for reduction in ("token", "sequence"):
        objective = Objective(
            [Term(name="kl", divergence=ForwardKL(), author="teacher", reduction=reduction)]
        )
        batch = toy_batch([TEACHER, TEACHER])
        run(objective, batch).loss.backward()
        gradients[reduction] = batch[0].hidden.grad
    factors = torch.tensor([6 / 8] * 4 + [6 / 4] * 2, dtype=torch.float64)
    torch.testing.assert_close(gradients["sequence"], gradients["token"] * factors[:, None])


@pytest.mark.parametrize("round", [1, 2])
def test_micro_batches_with_shared_denominators_add_up_to_the_whole_batch(round: int) -> None:
    batch = random_batch([3, 5, 1, 4, 2, 2], authors=[TEACHER, STUDENT, TEACHER, STUDENT, TEACHER, STUDENT])
    objective = DistiLLM2().build() if round == 1 else objective_in_round_two()
    whole = run(objective, batch)
    whole.loss.backward()
    parts = [select(batch, keep) for keep in ([0, 1, 3], [2], [4, 5])]
    denominators = torch.stack([objective.counts(part[2]) for part in parts]).sum(0)
    results = [run(objective, part, denominators=denominators) for part in parts]
    torch.testing.assert_close(sum(result.loss for result in results), whole.loss)
    for part, keep in zip(parts, ([0, 1, 3], [2], [4, 5]), strict=True):
        (gradient,) = torch.autograd.grad(
            run(objective, part, denominators=denominators).loss, part[0].hidden
        )
        rows = torch.isin(batch[2].response_index, torch.tensor(keep))
        torch.testing.assert_close(gradient, batch[0].hidden.grad[rows])
    for name in whole.metrics:
        if not name.startswith("beta"):  # counted once per micro-batch
            torch.testing.assert_close(sum(result.metrics[name] for result in results), whole.metrics[name])
    merged = {name: sum(r.metrics[name].item() for r in results) for name in whole.metrics}
    assert objective.metrics_view(merged) == pytest.approx(objective.metrics_view(as_floats(whole.metrics)))


def test_logged_loss_is_the_mean_over_steps() -> None:
    objective = DistiLLM2().build()
    batches = [random_batch([3, 2], authors=[TEACHER, STUDENT], seed=seed) for seed in (1, 2)]
    steps = [run(objective, batch) for batch in batches]
    merged = {name: sum(step.metrics[name].item() for step in steps) for name in steps[0].metrics}
    expected = sum(step.loss.item() for step in steps) / 2
    assert objective.metrics_view(merged)["loss"] == pytest.approx(expected)


@pytest.mark.parametrize(
    "objective", [DistiLLM2().build(), objective_in_round_two()], ids=["round 1", "round 2"]
)
def test_padding_and_chunks_change_nothing(objective: Objective) -> None:
    authors = [TEACHER, STUDENT, TEACHER]
    narrow = random_batch([3, 4, 2], authors=authors)
    wide = random_batch([3, 4, 2], authors=authors, width=9)
    # Same tokens in both: labels are numbered by position, and the wider batch numbers differently.
    labels = torch.zeros_like(wide[2].input_ids)
    labels[:, :4] = narrow[2].input_ids
    wide = (wide[0], wide[1], replace(wide[2], input_ids=labels))
    losses = [
        run(objective, batch, byte_budget=budget) for batch in (narrow, wide) for budget in (1, 700, LARGE)
    ]
    for other in losses[1:]:
        torch.testing.assert_close(other.loss, losses[0].loss)
        for name, value in losses[0].metrics.items():
            torch.testing.assert_close(other.metrics[name], value)


@pytest.mark.parametrize("round", [1, 2])
def test_empty_responses_and_missing_sides_contribute_zero_and_never_nan(round: int) -> None:
    objective = DistiLLM2().build() if round == 1 else objective_in_round_two()
    full = random_batch([3, 0, 2], authors=[TEACHER, TEACHER, STUDENT])
    assert objective.counts(full[2]).tolist() == [1, 1]
    without_empty = run(objective, select(full, [0, 2]))
    torch.testing.assert_close(run(objective, full).loss, without_empty.loss)
    one_sided = run(objective, select(full, [0]))
    assert one_sided.metrics["srkl_sum"] == 0
    view = objective.metrics_view(as_floats(one_sided.metrics))
    assert "srkl" not in view
    assert all(math.isfinite(value) for value in view.values())


@pytest.mark.parametrize("config", METHODS, ids=repr)
def test_a_batch_of_empty_responses_is_zero_with_a_gradient_path(config) -> None:
    batch = random_batch([0, 0], authors=[TEACHER, STUDENT], width=3)
    loss = run(config.build(), batch).loss
    assert loss.item() == 0
    loss.backward()
    assert batch[0].hidden.grad.shape == (0, 7)


def test_alpha_follows_the_gap_of_each_response_in_round_two() -> None:
    batch = random_batch([3, 4, 2, 5], authors=[TEACHER, STUDENT, TEACHER, STUDENT])
    student, teacher, responses = batch
    objective = objective_in_round_two(mean_gap=0.02)
    result = run(objective, batch, byte_budget=1)
    expected, alphas = torch.zeros((), dtype=torch.float64), {TEACHER: [], STUDENT: []}
    for index, author in enumerate(responses.author.tolist()):
        rows = responses.response_index == index
        z_s, z_t, labels = student.hidden.detach()[rows], teacher.hidden[rows], responses.labels[rows]
        log_q, log_p = (z.log_softmax(-1)[torch.arange(len(z)), labels].mean() for z in (z_s, z_t))
        gap = (log_p.exp() - log_q.exp()).item() * (1 if author == TEACHER else -1)
        alpha = 0.01 if gap <= 0 else min(0.1, max(0.01, 1 - 0.9 * 0.02 / (gap + 1e-5)))
        alphas[author].append(alpha)
        divergence = SkewKL(alpha=alpha) if author == TEACHER else SkewReverseKL(alpha=alpha)
        expected += 0.5 * divergence(z_s, z_t).mean() / 2
    assert len({round(a, 6) for side in alphas.values() for a in side}) > 1, (
        "the case should tell responses apart"
    )
    torch.testing.assert_close(result.loss.detach(), expected)
    view = objective.metrics_view(as_floats(result.metrics))
    assert view["alpha_teacher"] == pytest.approx(sum(alphas[TEACHER]) / 2)
    assert view["alpha_student"] == pytest.approx(sum(alphas[STUDENT]) / 2)


def test_alpha_is_a_constant_for_the_gradient() -> None:
    batch = random_batch([4], authors=[TEACHER])
    objective = objective_in_round_two(mean_gap=0.02)
    result = run(objective, batch)
    alpha = result.metrics["alpha_teacher_sum"].item()
    (gradient,) = torch.autograd.grad(result.loss, batch[0].hidden)
    leaf = batch[0].hidden.detach().requires_grad_()
    (expected,) = torch.autograd.grad(0.5 * SkewKL(alpha=alpha)(leaf, batch[1].hidden).mean(), leaf)
    torch.testing.assert_close(gradient, expected)


def test_training_one_round_moves_the_running_mean_and_the_next_round_uses_it() -> None:
    objective = DistiLLM2().build()
    objective.start_round(1, num_rounds=2)
    gaps = []
    for seed in (1, 2):
        metrics = as_floats(
            run(objective, random_batch([3, 2], authors=[TEACHER, STUDENT], seed=seed)).metrics
        )
        assert metrics["alpha_teacher_sum"] == pytest.approx(0.1)
        gaps.append(metrics["gap_teacher_sum"])
        objective.update(metrics, fraction=seed / 2)
    objective.start_round(2, num_rounds=2)
    skew = objective.terms[0].skew
    assert skew.mean_gap == pytest.approx(sum(gaps) / 2)
    assert objective.clock.round == 2


def test_beta_is_logged_and_weighs_the_sides() -> None:
    objective = DistiLLM2().build()
    batch = random_batch([3, 2], authors=[TEACHER, STUDENT])
    for round in (1, 2):
        objective.start_round(round)
        betas = []
        for step in range(4):
            metrics = as_floats(run(objective, batch).metrics)
            view = objective.metrics_view(metrics)
            betas.append(view["beta"])
            mixed = (1 - view["beta"]) * view["skl"] + view["beta"] * view["srkl"]
            assert view["loss"] == pytest.approx(mixed, rel=1e-6)
            objective.update(metrics, fraction=(step + 1) / 4)
        assert betas == pytest.approx([0.5, 0.625, 0.75, 0.75])


def test_printed_beta_schedule_reaches_one_and_warns_once(caplog) -> None:
    objective = DistiLLM2(beta_curriculum="printed").build()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    objective.start_round(1)
    batch = random_batch([3, 2], authors=[TEACHER, STUDENT])
    for step in range(2):
        objective.update(as_floats(run(objective, batch).metrics), fraction=(step + 1) / 3)
    view = objective.metrics_view(as_floats(run(objective, batch).metrics))
    assert view["beta"] == pytest.approx(1.0)
    assert view["loss"] == pytest.approx(view["srkl"])
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("config", "said"), [(DistiLLM2(), True), (DistiLLM2(preset="released"), False)], ids=repr
)
def test_a_run_of_one_round_says_that_alpha_stays(config, said: bool, caplog) -> None:
    with caplog.at_level(logging.INFO):
        config.build().start_round(1, num_rounds=1)
        DistiLLM2().build().start_round(1, num_rounds=2)
    assert len(caplog.records) == said


def test_resuming_inside_a_round_continues_both_curricula() -> None:
    batch = random_batch([3, 2], authors=[TEACHER, STUDENT])
    objective = DistiLLM2().build()
    objective.start_round(1)
    for step in range(2):
        objective.update(as_floats(run(objective, batch).metrics), fraction=(step + 1) / 6)
    resumed = DistiLLM2().build()
    resumed.start_round(1)
    resumed.load_state_dict(json.loads(json.dumps(objective.state_dict())))
    for step in range(2, 6):
        assert torch.equal(run(objective, batch).loss, run(resumed, batch).loss)
        for each in (objective, resumed):
            each.update(as_floats(run(each, batch).metrics), fraction=(step + 1) / 6)
    for each in (objective, resumed):
        each.start_round(2)
    assert torch.equal(run(objective, batch).loss, run(resumed, batch).loss)
    assert resumed.state_dict() == objective.state_dict()


def test_state_of_another_objective_is_refused() -> None:
    with pytest.raises(DataError, match="objective state: expected the schedules"):
        DistiLLM2().build().load_state_dict(DistiLLM2(preset="released").build().state_dict())


def test_metrics_have_the_same_names_in_every_micro_batch() -> None:
    batch = random_batch([3, 0, 2], authors=[TEACHER, TEACHER, STUDENT])
    for objective in (DistiLLM2().build(), objective_in_round_two()):
        names = [set(run(objective, select(batch, keep)).metrics) for keep in ([0, 1, 2], [1], [2])]
        assert names[0] == names[1] == names[2]
        assert all(not value.requires_grad for value in run(objective, batch).metrics.values())


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.5},
        {"alpha": 0.0, "alpha_curriculum": False},
        {"preset": "released", "beta_curriculum": "half_round"},
    ],
)
def test_contradicting_options_are_config_errors(options: dict) -> None:
    with pytest.raises(ConfigError, match=r"distillm2|skew_kl"):
        DistiLLM2(**options)


def test_a_support_mismatch_under_forward_kl_is_infinite_and_explained_by_token() -> None:
    responses = random_batch([2], authors=[TEACHER])[2]
    objective = Objective([Term(name="kl", divergence=ForwardKL(), author="teacher")])
    weight, bias = torch.eye(7), torch.zeros(7)
    bias[3] = -math.inf
    student = Rows(hidden=torch.zeros(2, 7, requires_grad=True), head=Head(weight=weight, bias=bias))
    teacher = Rows(hidden=torch.zeros(2, 7), head=Head(weight=weight))
    assert run(objective, (student, teacher, responses)).loss.item() == math.inf
    for budget in (1, LARGE):
        error = explain_non_finite(student, teacher, responses, names=["first"], byte_budget=budget)
        assert isinstance(error, DataError)
        assert "response first, token" in str(error)
        assert "token id 3 is possible for the teacher and impossible for the student" in str(error)


def test_a_diverged_student_and_an_impossible_label_are_explained() -> None:
    student, teacher, responses = random_batch([2, 3], authors=[TEACHER, STUDENT])
    hidden = student.hidden.detach().clone()
    hidden[3] = math.nan
    names = ["first", "second"]
    broken = Rows(hidden=hidden, head=student.head)
    error = explain_non_finite(broken, teacher, responses, names=names, byte_budget=1)
    assert "response second, token 1: the student's logits are not finite" in str(error)
    narrow = Rows(hidden=student.hidden, head=student.head, compared=IdRange(stop=3))
    lost = int(responses.labels[responses.labels >= 3][0])
    assert f"token id {lost} of the response is impossible" in str(
        explain_non_finite(narrow, None, responses, names=names, byte_budget=LARGE)
    )


def test_one_hot_and_likelihood_belong_together() -> None:
    with pytest.raises(AssertionError):
        Term(name="x", divergence=ForwardKL(), target=OneHot(), author="teacher")
    with pytest.raises(AssertionError):
        Term(name="x", divergence=NegativeLogLikelihood(), author="teacher")
