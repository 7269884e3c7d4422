"""Named methods: whose responses, which models and which loss, each against its terms in plain float64."""

import json
from dataclasses import replace

import pytest
import torch
from loss_batches import REFERENCE, STUDENT, TEACHER, as_floats, random_batch, run, select, toy_batch
from loss_oracle import plain_divergence

from vlm_distill.config import Record, decode
from vlm_distill.errors import ConfigError, DataError
from vlm_distill.losses import (
    DPO,
    GKD,
    KD,
    SFT,
    TAID,
    AdaptiveKL,
    AlphaBeta,
    DistiLLM,
    DistiLLM2,
    ForwardKL,
    ImitKD,
    JensenShannon,
    OnPolicyKD,
    ReverseKL,
    SeqKD,
    SimPER,
    SkewKL,
    SkewReverseKL,
)
from vlm_distill.runs.config import Objective

BOTH = frozenset({"teacher", "student"})
T, S, R = frozenset({"teacher"}), frozenset({"student"}), frozenset({"reference"})
NONE: frozenset = frozenset()
# Config: authors, authors whose responses are stored, needs the teacher, needs the start, source.
FACTS = [
    (DistiLLM2(), BOTH, BOTH, True, False, "stored"),
    (SFT(), R, R, False, False, "stored"),
    (SeqKD(), T, T, False, False, "stored"),
    (KD(), T, T, True, False, "stored"),
    (KD(responses="reference"), R, R, True, False, "stored"),
    (TAID(), T, T, True, False, "stored"),
    (ImitKD(), S, NONE, True, False, "on_policy"),
    (GKD(), BOTH, T, True, False, "on_policy"),
    (GKD(responses="reference"), S | R, R, True, False, "on_policy"),
    (GKD(on_policy=1.0), S, NONE, True, False, "on_policy"),
    (GKD(on_policy=0.0), T, T, True, False, "on_policy"),
    (DistiLLM(), BOTH, T, True, False, "adaptive_off_policy"),
    (DistiLLM(responses="reference"), S | R, R, True, False, "adaptive_off_policy"),
    (OnPolicyKD(), S, NONE, True, False, "on_policy"),
    (OnPolicyKD(form="sampled"), S, NONE, True, False, "on_policy"),
    (SimPER(), BOTH, BOTH, False, False, "stored"),
    (DPO(), BOTH, BOTH, False, True, "stored"),
    (DPO(reference="teacher"), BOTH, BOTH, True, False, "stored"),
]


class Run(Record):
    objective: Objective


def decoded(**objective):
    return decode(Run, {"objective": objective}, where="run.yaml").objective


@pytest.mark.parametrize(
    ("config", "authors", "stored", "teacher", "start", "source"),
    FACTS,
    ids=[repr(config) for config, *_ in FACTS],
)
def test_says_whose_responses_it_trains_on_and_which_models_it_reads(
    config, authors, stored, teacher: bool, start: bool, source: str
) -> None:
    objective = config.build()
    assert (objective.authors, objective.stored_authors) == (authors, stored)
    assert (objective.needs_teacher, objective.needs_reference_model) == (teacher, start)
    assert objective.source.kind == source


@pytest.mark.parametrize(
    "config", [config for config, *_ in FACTS if not config.build().needs_teacher], ids=repr
)
def test_what_needs_no_teacher_runs_without_teacher_rows(config) -> None:
    student, _, responses = random_batch([3, 2, 2], authors=[TEACHER, STUDENT, REFERENCE], prompts=[0, 0, 0])
    responses = replace(responses, reference_log_probs=torch.tensor([-3.0, -4.0, -5.0]))
    assert run(config.build(), (student, None, responses)).loss.item() != 0


@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize(
    ("build", "author", "divergence"),
    [
        (lambda reduction: KD(reduction=reduction), TEACHER, ForwardKL()),
        (lambda reduction: KD(reduction=reduction, responses="reference"), REFERENCE, ForwardKL()),
        (lambda reduction: KD(reduction=reduction, divergence=AdaptiveKL()), TEACHER, AdaptiveKL()),
        (lambda reduction: KD(reduction=reduction, divergence=AlphaBeta()), TEACHER, AlphaBeta()),
        (lambda reduction: ImitKD(reduction=reduction), STUDENT, ForwardKL()),
        (lambda reduction: GKD(reduction=reduction), TEACHER, JensenShannon()),
        (lambda reduction: GKD(reduction=reduction, beta=0.1), STUDENT, JensenShannon(beta=0.1)),
        (lambda reduction: OnPolicyKD(reduction=reduction), STUDENT, ReverseKL()),
    ],
)
def test_the_loss_is_the_mean_of_its_divergence(build, author: int, divergence, reduction: str) -> None:
    batch = random_batch([4, 2], authors=[author, author])
    values = plain_divergence(divergence, batch[0].hidden.detach(), batch[1].hidden)
    expected = values.mean() if reduction == "token" else (values[:4].mean() + values[4:].mean()) / 2
    torch.testing.assert_close(run(build(reduction).build(), batch).loss.detach(), expected)


@pytest.mark.parametrize("author", [TEACHER, STUDENT])
@pytest.mark.parametrize(("name", "divergence"), [("skl", SkewKL()), ("srkl", SkewReverseKL())])
def test_distillm_averages_one_skew_divergence_over_tokens_whoever_wrote_them(
    name: str, divergence, author: int
) -> None:
    batch = random_batch([4, 2], authors=[author, author])
    expected = plain_divergence(divergence, batch[0].hidden.detach(), batch[1].hidden).mean()
    loss = run(DistiLLM(divergence=name).build(), batch).loss
    torch.testing.assert_close(loss.detach(), expected)


@pytest.mark.parametrize(
    ("divergence", "value"), [(AdaptiveKL(), 2.9509617), (AlphaBeta(), 3.2381651), (ForwardKL(), 2.5918601)]
)
def test_kd_has_the_toy_values(divergence, value: float) -> None:
    loss = run(KD(divergence=divergence).build(), toy_batch([TEACHER, TEACHER])).loss
    assert loss.item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("config", [GKD(), DistiLLM()], ids=repr)
def test_a_step_on_one_author_leaves_the_other_term_at_zero_and_out_of_the_log(config) -> None:
    objective = config.build()
    batch = random_batch([3, 2], authors=[STUDENT, STUDENT])
    assert 0 in objective.counts(batch[2]).tolist()
    result = run(objective, batch)
    view = objective.metrics_view(as_floats(result.metrics))
    name = objective.terms[0].name.split("_")[0]
    assert view[f"{name}_student"] == pytest.approx(view["loss"])
    assert f"{name}_teacher" not in view
    assert result.loss.isfinite()


def test_sampled_reverse_kl_has_the_gradient_of_reverse_kl_in_expectation_over_samples() -> None:
    full = random_batch([1], authors=[STUDENT])
    student, teacher, responses = full
    (expected,) = torch.autograd.grad(run(OnPolicyKD().build(), full).loss, student.hidden)
    gradient, value = torch.zeros_like(expected), 0.0
    for token, probability in enumerate(student.hidden.detach().softmax(-1)[0].tolist()):
        responses.input_ids[0, 0] = token
        loss = run(OnPolicyKD(form="sampled").build(), (student, teacher, responses)).loss
        gradient += probability * torch.autograd.grad(loss, student.hidden)[0]
        value += probability * loss.item()
    torch.testing.assert_close(gradient, expected)
    assert value == pytest.approx(run(OnPolicyKD().build(), full).loss.item())


@pytest.mark.parametrize("byte_budget", [1, 1 << 30])
def test_sampled_reverse_kl_is_the_policy_gradient_of_its_advantage(byte_budget: int) -> None:
    batch = random_batch([3, 2], authors=[STUDENT, STUDENT])
    student, teacher, responses = batch
    loss = run(OnPolicyKD(form="sampled").build(), batch, byte_budget=byte_budget).loss
    every = torch.arange(5)
    leaf = student.hidden.detach().requires_grad_()
    log_q = leaf.softmax(-1)[every, responses.labels].log()
    advantage = teacher.hidden.softmax(-1)[every, responses.labels].log() - log_q.detach()
    assert loss.item() == pytest.approx(-advantage.mean().item())
    (expected,) = torch.autograd.grad(-(advantage * log_q).mean(), leaf)
    torch.testing.assert_close(torch.autograd.grad(loss, student.hidden)[0], expected)


@pytest.mark.parametrize("config", [config for config, *_ in FACTS], ids=repr)
def test_micro_batches_with_shared_denominators_add_up_to_the_whole_batch(config) -> None:
    authors = [TEACHER, STUDENT, REFERENCE] * 2
    batch = random_batch([3, 2, 2, 1, 5, 4], authors=authors, prompts=[0, 0, 0, 1, 1, 1])
    batch = (*batch[:2], replace(batch[2], reference_log_probs=torch.linspace(-9, -2, 6)))
    objective = config.build()
    whole = run(objective, batch)
    parts = [select(batch, keep) for keep in ([0, 1, 2], [3, 4, 5])]
    denominators = torch.stack([objective.counts(part[2]) for part in parts]).sum(0)
    results = [run(objective, part, denominators=denominators) for part in parts]
    torch.testing.assert_close(sum(result.loss for result in results), whole.loss, rtol=1e-6, atol=1e-9)
    (gradient,) = torch.autograd.grad(whole.loss, batch[0].hidden)
    shares = [
        torch.autograd.grad(result.loss, part[0].hidden)[0]
        for result, part in zip(results, parts, strict=True)
    ]
    torch.testing.assert_close(torch.cat(shares), gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("config", [config for config, *_ in FACTS], ids=repr)
def test_every_state_survives_json_and_gives_the_same_next_step(config) -> None:
    batch = random_batch([3, 2, 2], authors=[TEACHER, STUDENT, REFERENCE], prompts=[0, 0, 0])
    batch = (*batch[:2], replace(batch[2], reference_log_probs=torch.tensor([-3.0, -4.0, -5.0])))
    objective, resumed = config.build(), config.build()
    for loss in (1.0, 2.0):
        objective.source.observe_validation(loss)
    for step in range(3):
        objective.update(as_floats(run(objective, batch).metrics), fraction=(step + 1) / 8)
    resumed.load_state_dict(json.loads(json.dumps(objective.state_dict())))
    assert resumed.state_dict() == objective.state_dict()
    assert resumed.clock == objective.clock
    assert torch.equal(run(resumed, batch).loss, run(objective, batch).loss)
    for uniform in (0.05, 0.3, 0.9):
        choices = [one.source.draw(uniform, one.clock, buffered=1000) for one in (objective, resumed)]
        assert choices[0] == choices[1]


def test_state_of_another_source_is_refused() -> None:
    with pytest.raises(DataError, match=r"expected .* source on_policy, got .* stored; was"):
        ImitKD().build().load_state_dict(KD().build().state_dict())


@pytest.mark.parametrize("beta", ["off", "half_round"])
@pytest.mark.parametrize("alpha", [False, True])
def test_each_component_of_distillm_2_can_be_used_alone(alpha: bool, beta: str) -> None:
    objective = DistiLLM2(alpha_curriculum=alpha, beta_curriculum=beta).build()
    batch = random_batch([3, 2], authors=[TEACHER, STUDENT])
    objective.start_round(1)
    for step in range(2):
        objective.update(as_floats(run(objective, batch).metrics), fraction=(step + 1) / 4)
    view = objective.metrics_view(as_floats(run(objective, batch).metrics))
    assert view["beta"] == pytest.approx(0.75 if beta == "half_round" else 0.5)
    skews = [term.skew for term in objective.terms]
    assert all(skews) if alpha else not any(skews)
    if alpha:
        for skew in skews:
            skew.gap_sum, skew.gap_count = 1e-3, 1.0
        objective.start_round(2)
        after = run(objective, batch).metrics
        assert min(after["alpha_teacher_sum"].item(), after["alpha_student_sum"].item()) < 0.1


def test_yaml_reaches_every_method_by_kind() -> None:
    for config, *_ in FACTS:
        assert decoded(kind=config.kind) == type(config)()
    nested = {"kind": "alpha_beta", "alpha": 0.3}
    assert decoded(kind="kd", divergence=nested).divergence == AlphaBeta(alpha=0.3)
    assert decoded(kind="taid", divergence={"kind": "skew_kl"}).divergence == SkewKL()


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"kind": "kd", "divergence": {"kind": "alpha_beta", "gamma": 1.0}}, "unknown key"),
        ({"kind": "kd", "divergence": {"kind": "adaptive_k"}}, "did you mean 'adaptive_kl'"),
        ({"kind": "kd", "responses": "student"}, "responses"),
        ({"kind": "gkd", "on_policy": 2.0}, "on-policy share: expected 0 to 1"),
        ({"kind": "gkd", "beta": 1.0}, "beta of jensen_shannon"),
        ({"kind": "distillm", "alpha": 0.0}, "alpha of skew_reverse_kl"),
        ({"kind": "distillm", "capacity": 0}, "replay buffer: expected"),
        ({"kind": "dpo", "beta": -1.0}, "expected beta > 0"),
        ({"kind": "dpo", "beta": float("inf")}, "expected beta > 0"),
        ({"kind": "distillm", "margin": float("nan")}, "expected a finite margin, got nan"),
        ({"kind": "kd", "divergence": {"kind": "alpha_beta", "beta": float("inf")}}, "both finite"),
        (
            {"kind": "kd", "divergence": {"kind": "symmetric_kl", "weights": [1, float("nan")]}},
            "two positive",
        ),
        ({"kind": "taid", "t_start": 2.0}, "taid: expected 0 < t_start"),
        ({"kind": "simper", "reduction": "token"}, "unknown key"),
    ],
)
def test_wrong_values_in_yaml_are_config_errors(objective: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        decoded(**objective)
    assert "run.yaml: objective" in str(caught.value)
    assert "\n" not in str(caught.value)
