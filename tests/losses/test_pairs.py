"""Pair terms against autograd through full logits in float64: values, gradients, pairing, micro-batches."""

import math
from dataclasses import replace

import pytest
import torch
from loss_batches import (
    LARGE,
    REFERENCE,
    STUDENT,
    TEACHER,
    as_floats,
    random_batch,
    run,
    select,
    toy_batch,
)
from torch import Tensor

from vlm_distill.errors import ConfigError
from vlm_distill.losses import (
    DPO,
    DirectPreference,
    InversePerplexity,
    NegativeLogLikelihood,
    Objective,
    OneHot,
    PairTerm,
    SimPER,
    Term,
)

METHODS = [
    SimPER(),
    DPO(beta=0.7),
    DPO(beta=0.7, length_normalised=True),
    DPO(beta=0.7, reference="teacher"),
    DPO(beta=0.7, reference="teacher", length_normalised=True),
]
# Three prompts: two pairs, one pair with a second response of the student, one without the teacher.
AUTHORS = [TEACHER, TEACHER, STUDENT, STUDENT, TEACHER, STUDENT, STUDENT, STUDENT]
PROMPTS = [0, 0, 0, 0, 1, 1, 1, 2]
LENGTHS = [3, 5, 1, 4, 2, 2, 6, 3]
PAIRS = [(0, 2), (1, 3), (4, 5)]
START = [-3.0, -9.0, -2.5, -8.0, -4.0, -5.0, -12.0, -6.0]


def pair_batch(**options):
    student, teacher, responses = random_batch(LENGTHS, authors=AUTHORS, prompts=PROMPTS, **options)
    return student, teacher, replace(responses, reference_log_probs=torch.tensor(START))


def plain_loss(config, batch, pairs=PAIRS) -> Tensor:
    """Return the mean over pairs from whole softmaxes."""
    student, teacher, responses = batch

    def log_prob(hidden: Tensor, response: int) -> Tensor:
        rows = responses.response_index == response
        return hidden.softmax(-1)[rows, responses.labels[rows]].log().sum()

    values = []
    for chosen, rejected in pairs:
        n_w, n_l = responses.num_tokens[chosen], responses.num_tokens[rejected]
        q_w, q_l = log_prob(student.hidden, chosen), log_prob(student.hidden, rejected)
        if isinstance(config, SimPER):
            values.append(-(q_w / n_w).exp() + (q_l / n_l).exp())
            continue
        if config.reference == "teacher":
            r_w, r_l = log_prob(teacher.hidden, chosen), log_prob(teacher.hidden, rejected)
        else:
            r_w, r_l = START[chosen], START[rejected]
        lengths = (n_w, n_l) if config.length_normalised else (1, 1)
        margin = config.beta * ((q_w - r_w) / lengths[0] - (q_l - r_l) / lengths[1])
        values.append(-(1 / (1 + (-margin).exp())).log())
    return torch.stack(values).mean()


@pytest.mark.parametrize("byte_budget", [1, LARGE])
@pytest.mark.parametrize("config", METHODS, ids=repr)
def test_value_and_gradient_equal_autograd_through_full_logits(config, byte_budget: int) -> None:
    batch = pair_batch()
    result = run(config.build(), batch, byte_budget=byte_budget)
    (gradient,) = torch.autograd.grad(result.loss, batch[0].hidden)
    plain = plain_loss(config, batch)
    (expected,) = torch.autograd.grad(plain, batch[0].hidden)
    torch.testing.assert_close(result.loss, plain, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
    assert (gradient[torch.isin(batch[2].response_index, torch.tensor([6, 7]))] == 0).all()


@pytest.mark.parametrize("config", METHODS, ids=repr)
def test_gradient_equals_finite_differences_of_the_value(config) -> None:
    student, teacher, responses = pair_batch()
    objective = config.build()

    def loss_at(hidden: Tensor) -> float:
        with torch.no_grad():
            return run(objective, (replace(student, hidden=hidden), teacher, responses)).loss.item()

    (gradient,) = torch.autograd.grad(run(objective, (student, teacher, responses)).loss, student.hidden)
    for row, column in ((0, 2), (5, 1), (9, 6), (16, 3)):
        step = torch.zeros_like(student.hidden)
        step[row, column] = 1e-5
        hidden = student.hidden.detach()
        slope = (loss_at(hidden + step) - loss_at(hidden - step)) / 2e-5
        assert gradient[row, column].item() == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_simper_has_the_toy_value() -> None:
    batch = toy_batch([TEACHER, STUDENT], prompts=[0, 0])
    assert run(SimPER().build(), batch).loss.item() == pytest.approx(0.0417878, abs=1e-6)


@pytest.mark.parametrize("config", METHODS, ids=repr)
def test_micro_batches_with_shared_denominators_add_up_to_the_whole_batch(config) -> None:
    batch, objective = pair_batch(), config.build()
    whole = run(objective, batch)
    (gradient,) = torch.autograd.grad(whole.loss, batch[0].hidden)
    keeps = ([0, 1, 2, 3], [4, 5, 6], [7])
    parts = [select(batch, keep) for keep in keeps]
    denominators = torch.stack([objective.counts(part[2]) for part in parts]).sum(0)
    assert denominators.tolist() == objective.counts(batch[2]).tolist() == [3]
    results = [run(objective, part, denominators=denominators) for part in parts]
    torch.testing.assert_close(sum(result.loss for result in results), whole.loss)
    for part, keep, result in zip(parts, keeps, results, strict=True):
        (share,) = torch.autograd.grad(result.loss, part[0].hidden)
        rows = torch.isin(batch[2].response_index, torch.tensor(keep))
        torch.testing.assert_close(share, gradient[rows])
    for name in whole.metrics:
        torch.testing.assert_close(sum(result.metrics[name] for result in results), whole.metrics[name])


@pytest.mark.parametrize("config", METHODS, ids=repr)
def test_padding_changes_nothing(config) -> None:
    narrow, wide = pair_batch(), pair_batch(width=11)
    labels = torch.zeros_like(wide[2].input_ids)
    labels[:, :6] = narrow[2].input_ids
    wide = (wide[0], wide[1], replace(wide[2], input_ids=labels))
    torch.testing.assert_close(run(config.build(), narrow).loss, run(config.build(), wide).loss)


def test_metrics_are_means_over_pairs_and_count_what_has_no_partner() -> None:
    batch = pair_batch()
    student, teacher, responses = batch
    result = run(DPO(beta=0.7, reference="teacher").build(), batch)
    view = DPO().build().metrics_view(as_floats(result.metrics))
    every = torch.arange(len(responses.labels))
    sums = torch.zeros(2, len(LENGTHS), dtype=torch.float64)
    for index, rows in enumerate((student, teacher)):
        log_probs = rows.hidden.detach().log_softmax(-1)[every, responses.labels]
        sums[index] = sums[index].index_add(0, responses.response_index, log_probs)
    ratio = sums[0] - sums[1]
    margins = [0.7 * (ratio[chosen] - ratio[rejected]).item() for chosen, rejected in PAIRS]
    means = sums[0] / torch.tensor(LENGTHS)
    assert view == pytest.approx(
        {
            "loss": result.loss.item(),
            "dpo": result.loss.item(),
            "dpo_margin": sum(margins) / 3,
            "dpo_accuracy": sum(margin > 0 for margin in margins) / 3,
            "dpo_log_prob_teacher": means[[0, 1, 4]].mean().item(),
            "dpo_log_prob_student": means[[2, 3, 5]].mean().item(),
            "dpo_unpaired": 2 / 8,
        }
    )


def test_the_student_at_the_start_of_dpo_has_no_margin() -> None:
    student, _, responses = random_batch([3, 2], authors=[TEACHER, STUDENT], prompts=[0, 0])
    log_probs = student.hidden.detach().log_softmax(-1)[torch.arange(5), responses.labels]
    start = torch.stack([log_probs[:3].sum(), log_probs[3:].sum()]).float()
    result = run(DPO().build(), (student, None, replace(responses, reference_log_probs=start)))
    assert result.loss.item() == pytest.approx(math.log(2), abs=1e-6)


def test_a_step_of_dpo_raises_the_margin() -> None:
    student, teacher, responses = pair_batch()
    objective = DPO().build()
    before = run(objective, (student, teacher, responses))
    (gradient,) = torch.autograd.grad(before.loss, student.hidden)
    moved = replace(student, hidden=student.hidden.detach() - gradient)
    after = run(objective, (moved, teacher, responses))
    assert after.metrics["dpo_margin_sum"] > before.metrics["dpo_margin_sum"]


def test_an_empty_response_leaves_its_partner_without_one() -> None:
    batch = random_batch([0, 3, 2, 2], authors=[TEACHER, STUDENT, TEACHER, STUDENT], prompts=[0, 0, 1, 1])
    objective = SimPER().build()
    assert objective.counts(batch[2]).tolist() == [1]
    result = run(objective, batch)
    torch.testing.assert_close(result.loss, plain_loss(SimPER(), batch, [(2, 3)]))
    assert result.metrics["simper_unpaired_sum"] == 2


@pytest.mark.parametrize("config", METHODS, ids=repr)
def test_without_pairs_the_loss_is_zero_with_a_gradient_path(config) -> None:
    batch = random_batch([3, 2], authors=[TEACHER, STUDENT], prompts=[0, 1])
    batch = (*batch[:2], replace(batch[2], reference_log_probs=torch.zeros(2)))
    objective = config.build()
    assert objective.counts(batch[2]).tolist() == [0]
    result = run(objective, batch)
    assert result.loss.item() == 0
    result.loss.backward()
    assert (batch[0].hidden.grad == 0).all()
    assert set(objective.metrics_view(as_floats(result.metrics))) == {f"{config.kind}_unpaired"}


@pytest.mark.parametrize(("impossible", "sign"), [(TEACHER, 1), (STUDENT, -1)])
def test_an_impossible_label_has_no_likelihood_and_never_makes_nan(impossible: int, sign: int) -> None:
    student, teacher, responses = random_batch([1, 1], authors=[TEACHER, STUDENT], prompts=[0, 0])
    bias = torch.zeros(7, dtype=torch.float64)
    bias[responses.labels[impossible]] = -math.inf
    hidden = torch.zeros(2, 7, dtype=torch.float64, requires_grad=True)
    rows = replace(student, hidden=hidden, head=replace(student.head, bias=bias))
    loss = run(SimPER().build(), (rows, teacher, responses)).loss
    assert loss.item() == pytest.approx(sign / 6)
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert gradient.isfinite().all()


def test_pairs_beside_a_likelihood_keep_both_values() -> None:
    batch = pair_batch()
    likelihood = Term(name="nll", divergence=NegativeLogLikelihood(), target=OneHot(), author="teacher")
    pair = PairTerm(name="pair", function=InversePerplexity(), weight=0.3)
    both = run(Objective([likelihood, pair]), batch)
    expected = run(Objective([likelihood]), batch).loss + 0.3 * plain_loss(SimPER(), batch)
    torch.testing.assert_close(both.loss, expected)
    (gradient,) = torch.autograd.grad(both.loss, batch[0].hidden)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, batch[0].hidden)[0])


def test_sides_may_be_other_authors() -> None:
    batch = random_batch([3, 2, 4], authors=[TEACHER, STUDENT, REFERENCE], prompts=[0, 0, 0])
    term = PairTerm(name="pair", function=InversePerplexity(), chosen="reference", rejected="teacher")
    torch.testing.assert_close(run(Objective([term]), batch).loss, plain_loss(SimPER(), batch, [(2, 0)]))


def test_beta_must_be_positive() -> None:
    for config in (DPO, DirectPreference):
        with pytest.raises(ConfigError, match="expected beta > 0, got 0"):
            config(beta=0.0)
