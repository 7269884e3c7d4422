"""Gradients in closed form against the formulas of the papers, in float32, and where support ends."""

import math

import pytest
import torch
from loss_oracle import DIVERGENCES, log_of, name_of, plain_divergence
from torch import Tensor

from vlm_distill.losses import (
    AlphaBeta,
    ForwardKL,
    JensenShannon,
    NegativeLogLikelihood,
    ReverseKL,
    SampledReverseKL,
    SkewKL,
    SkewReverseKL,
    SymmetricKL,
    TotalVariation,
)
from vlm_distill.losses.gradients import label_value_and_gradient, value_and_gradient

every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES, ids=name_of)
BOUNDED = [
    SkewKL(),
    SkewReverseKL(),
    SkewReverseKL(detach_mixture=True),
    JensenShannon(),
    TotalVariation(),
]
MISMATCH_P, MISMATCH_Q = [0.5, 0.5, 0.0, 0.0], [0.5, 0.0, 0.5, 0.0]


def random_logits(rows: int = 5, vocab: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z_s, z_t = (2 * torch.randn(rows, vocab, generator=generator, dtype=torch.float64) for _ in range(2))
    return z_s, z_t


def expected(divergence, z_s: Tensor, z_t: Tensor, alpha: Tensor | None = None) -> tuple[Tensor, Tensor]:
    leaf = z_s.double().requires_grad_()
    values = plain_divergence(divergence, leaf, z_t.double(), alpha)
    return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]


@every_divergence
def test_value_and_gradient_follow_the_formula(divergence) -> None:
    z_s, z_t = random_logits()
    found = value_and_gradient(divergence, z_s.log_softmax(-1), z_t.log_softmax(-1))
    for ours, plain in zip(found, expected(divergence, z_s, z_t), strict=True):
        assert not ours.requires_grad
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("divergence", [SkewKL(), SkewReverseKL(), SkewReverseKL(detach_mixture=True)])
def test_alpha_per_row_follows_the_formula(divergence) -> None:
    z_s, z_t = random_logits()
    alpha = torch.tensor([0.01, 0.05, 0.1, 0.5, 0.9], dtype=torch.float64)
    found = value_and_gradient(divergence, z_s.log_softmax(-1), z_t.log_softmax(-1), alpha=alpha)
    for ours, plain in zip(found, expected(divergence, z_s, z_t, alpha), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)


@every_divergence
def test_the_log_probabilities_are_left_as_they_were(divergence) -> None:
    log_q, log_p = (logits.log_softmax(-1) for logits in random_logits())
    kept = log_q.clone(), log_p.clone()
    value_and_gradient(divergence, log_q, log_p)
    assert torch.equal(log_q, kept[0])
    assert torch.equal(log_p, kept[1])


@pytest.mark.parametrize("divergence", [d for d in DIVERGENCES if d != AlphaBeta()], ids=name_of)
def test_float32_agrees_with_float64_to_a_millionth_in_a_large_vocabulary(divergence) -> None:
    z_s, z_t = (logits.float() for logits in random_logits(rows=3, vocab=20_000))
    found = value_and_gradient(divergence, z_s.log_softmax(-1), z_t.log_softmax(-1))
    for ours, plain in zip(found, expected(divergence, z_s, z_t), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - plain).norm() <= 1e-6 * plain.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("divergence", BOUNDED, ids=name_of)
def test_a_support_mismatch_has_its_exact_value_and_a_finite_gradient(divergence, dtype) -> None:
    log_q, log_p = log_of(MISMATCH_Q, dtype=dtype), log_of(MISMATCH_P, dtype=dtype)
    values, gradient = value_and_gradient(divergence, log_q, log_p)
    torch.testing.assert_close(values, divergence(log_q, log_p))
    assert values.item() > 0.3
    assert gradient.isfinite().all()
    assert gradient.sum().item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("divergence", [ForwardKL(), ReverseKL(), SymmetricKL()], ids=name_of)
def test_kl_is_infinite_in_the_row_of_a_support_mismatch_only(divergence) -> None:
    log_q, log_p = log_of(MISMATCH_Q, [0.2, 0.0, 0.8, 0.0]), log_of(MISMATCH_P, [0.6, 0.0, 0.4, 0.0])
    values, gradient = value_and_gradient(divergence, log_q, log_p)
    assert values[0] == torch.inf
    for ours, plain in zip(
        (values[1:], gradient[1:, ::2]), expected(divergence, log_q[1:, ::2], log_p[1:, ::2]), strict=True
    ):
        torch.testing.assert_close(ours, plain)


@every_divergence
@pytest.mark.parametrize("broken", ["student", "teacher"])
def test_a_logit_that_is_no_number_makes_its_row_no_number(divergence, broken: str) -> None:
    z_s, z_t = random_logits()
    (z_s if broken == "student" else z_t)[1, 3] = math.nan
    values, _ = value_and_gradient(divergence, z_s.log_softmax(-1), z_t.log_softmax(-1))
    assert values.isnan().tolist() == [False, True, False, False, False]


@every_divergence
def test_extreme_logits_give_finite_gradients_in_float32(divergence) -> None:
    z_s, z_t = (100 * logits.float() for logits in random_logits(rows=20))
    _, gradient = value_and_gradient(divergence, z_s.log_softmax(-1), z_t.log_softmax(-1))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("divergence", [NegativeLogLikelihood(), SampledReverseKL()])
def test_gradients_of_labels_are_those_of_autograd(divergence) -> None:
    z_s, z_t = random_logits()
    columns = torch.tensor([3, 0, -1, 8, 1])
    every, inside = torch.arange(5), columns >= 0
    leaf = z_s.clone().requires_grad_()
    log_q, log_p = leaf.log_softmax(-1)[every, columns], z_t.log_softmax(-1)[every, columns]
    is_likelihood = isinstance(divergence, NegativeLogLikelihood)
    values = divergence(log_q) if is_likelihood else divergence(log_q, log_p)
    (plain,) = torch.autograd.grad(values[inside].sum(), leaf)
    found = label_value_and_gradient(
        divergence,
        z_s.log_softmax(-1),
        columns=columns,
        student_log_probs=log_q.detach(),
        teacher_log_probs=None if is_likelihood else log_p,
    )
    torch.testing.assert_close(found[0], values.detach())
    torch.testing.assert_close(found[1], plain)
