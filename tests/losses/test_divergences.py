"""Divergences against the formulas of the papers in probability space, their limits, bounds and support."""

import math

import pytest
import torch
from loss_oracle import DIVERGENCES, TOY_MASK, log_of, name_of, plain_divergence, toy_logits
from torch import Tensor

from vlm_distill.errors import ConfigError
from vlm_distill.losses import (
    AdaptiveKL,
    AlphaBeta,
    CrossEntropy,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    SymmetricKL,
    TotalVariation,
    skew_kl,
    skew_reverse_kl,
)

# Their gradient leaves a part out on purpose, which finite differences cannot; the formula test covers them.
PARTLY_CONSTANT = [SkewReverseKL(detach_mixture=True), AdaptiveKL()]
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES, ids=name_of)
FINITE_AT_MISMATCH = [
    SkewKL(),
    SkewReverseKL(),
    SkewReverseKL(detach_mixture=True),
    JensenShannon(),
    TotalVariation(),
    AlphaBeta(),
]
MISMATCH_P, MISMATCH_Q = [0.5, 0.5, 0.0], [0.5, 0.0, 0.5]


def random_logits(
    rows: int = 5, vocab: int = 9, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z_s, z_t = (2 * torch.randn(rows, vocab, generator=generator, dtype=torch.float64) for _ in range(2))
    return z_s.to(dtype), z_t.to(dtype)


@every_divergence
def test_a_logit_that_is_not_a_number_makes_its_row_one(divergence) -> None:
    z_s, z_t = random_logits()
    z_s[1, 2] = z_t[3, 0] = torch.nan
    assert divergence(z_s, z_t).isnan().tolist() == [False, True, False, True, False]


@every_divergence
def test_value_and_gradient_follow_the_formula(divergence) -> None:
    z_s, z_t = random_logits()
    ours, plain = z_s.clone().requires_grad_(), z_s.clone().requires_grad_()
    value, expected = divergence(ours, z_t), plain_divergence(divergence, plain, z_t)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    value.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("divergence", [d for d in DIVERGENCES if d not in PARTLY_CONSTANT], ids=name_of)
def test_gradient_passes_gradcheck(divergence) -> None:
    z_s, z_t = random_logits(rows=3, vocab=5)
    assert torch.autograd.gradcheck(lambda z: divergence(z, z_t), z_s.requires_grad_())


@every_divergence
def test_zero_with_zero_gradient_where_student_equals_teacher(divergence) -> None:
    z_t = random_logits()[1]
    z_s = z_t.clone().requires_grad_()
    value = divergence(z_s, z_t)
    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-14)
    value.sum().backward()
    if not isinstance(divergence, TotalVariation):  # which has a kink there
        torch.testing.assert_close(z_s.grad, torch.zeros_like(z_s), rtol=0, atol=1e-14)


@every_divergence
def test_positive_and_unchanged_by_a_shift_of_logits(divergence) -> None:
    z_s, z_t = random_logits()
    value = divergence(z_s, z_t)
    assert (value > 0).all()
    torch.testing.assert_close(divergence(z_s + 7.0, z_t - 3.0), value)


@every_divergence
def test_half_precision_logits_are_raised_to_float32(divergence) -> None:
    z_s, z_t = random_logits(dtype=torch.bfloat16)
    value = divergence(z_s, z_t)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, divergence(z_s.double(), z_t.double()).float(), rtol=1e-5, atol=1e-6)


def test_cross_entropy_is_forward_kl_and_the_entropy_of_the_teacher() -> None:
    z_s, z_t = random_logits()
    entropy = -(z_t.softmax(-1) * z_t.softmax(-1).log()).sum(-1)
    torch.testing.assert_close(CrossEntropy()(z_s, z_t), ForwardKL()(z_s, z_t) + entropy)
    assert torch.autograd.gradcheck(lambda z: CrossEntropy()(z, z_t), z_s.requires_grad_())


def test_cross_entropy_reads_only_what_the_teacher_has() -> None:
    p, q = log_of([1.0, 0.0, 0.0]), log_of([0.5, 0.0, 0.5]).requires_grad_()
    value = CrossEntropy()(q, p)
    assert value.item() == pytest.approx(math.log(2))
    value.sum().backward()
    assert q.grad.tolist() == [pytest.approx([-0.5, 0.0, 0.5])]
    assert CrossEntropy()(log_of(MISMATCH_Q), log_of(MISMATCH_P)).item() == math.inf


@pytest.mark.parametrize("alpha", [0.05, 0.5, 0.9])
def test_skewed_divergences_stay_below_minus_log_alpha(alpha: float) -> None:
    z_s, z_t = random_logits(rows=50)
    for divergence in (SkewKL(alpha=alpha), SkewReverseKL(alpha=alpha)):
        assert divergence(20 * z_s, 20 * z_t).max() <= -math.log(alpha) + 1e-12
    disjoint = log_of([1.0, 0.0]), log_of([0.0, 1.0])
    assert SkewKL(alpha=alpha)(*disjoint).item() == pytest.approx(-math.log(alpha))
    assert SkewReverseKL(alpha=alpha)(*disjoint).item() == pytest.approx(-math.log(alpha))


def test_skew_kl_tends_to_forward_kl_and_skew_reverse_kl_to_reverse_kl() -> None:
    z_s, z_t = random_logits()
    torch.testing.assert_close(SkewKL(alpha=1e-9)(z_s, z_t), ForwardKL()(z_s, z_t), rtol=1e-6, atol=0)
    torch.testing.assert_close(SkewReverseKL(alpha=1e-9)(z_s, z_t), ReverseKL()(z_s, z_t), rtol=1e-6, atol=0)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jensen_shannon_is_its_two_skewed_divergences(beta: float) -> None:
    z_s, z_t = random_logits()
    parts = beta * SkewKL(alpha=beta)(z_s, z_t) + (1 - beta) * SkewReverseKL(alpha=1 - beta)(z_s, z_t)
    torch.testing.assert_close(JensenShannon(beta=beta)(z_s, z_t), parts)


def test_jsd_is_symmetric_at_half_and_at_most_log_two() -> None:
    z_s, z_t = random_logits(rows=50)
    torch.testing.assert_close(JensenShannon()(z_s, z_t), JensenShannon()(z_t, z_s))
    assert JensenShannon()(20 * z_s, 20 * z_t).max() <= math.log(2) + 1e-12


def test_total_variation_is_at_most_one_and_one_for_disjoint_supports() -> None:
    z_s, z_t = random_logits(rows=50)
    assert TotalVariation()(20 * z_s, 20 * z_t).max() <= 1
    assert TotalVariation()(log_of([1.0, 0.0]), log_of([0.0, 1.0])).item() == 1


def test_alpha_beta_at_its_corners_is_forward_and_reverse_kl() -> None:
    z_s, z_t = random_logits()
    torch.testing.assert_close(AlphaBeta(alpha=1.0, beta=0.0)(z_s, z_t), ForwardKL()(z_s, z_t))
    torch.testing.assert_close(AlphaBeta(alpha=0.0, beta=1.0)(z_s, z_t), ReverseKL()(z_s, z_t))


@pytest.mark.parametrize(("alpha", "beta"), [(0.6, 0.0), (0.0, 0.6), (0.0, 0.0)])
def test_alpha_beta_is_continuous_at_its_limits(alpha: float, beta: float) -> None:
    z_s, z_t = random_logits()
    near = AlphaBeta(alpha=alpha or 1e-5, beta=beta or 1e-5)(z_s, z_t)
    torch.testing.assert_close(AlphaBeta(alpha=alpha, beta=beta)(z_s, z_t), near, rtol=1e-3, atol=1e-4)


def test_alpha_per_row_equals_one_call_per_row() -> None:
    z_s, z_t = random_logits()
    alphas = torch.tensor([0.01, 0.05, 0.1, 0.5, 0.9], dtype=torch.float64)
    for function, record in ((skew_kl, SkewKL), (skew_reverse_kl, SkewReverseKL)):
        together = function(z_s, z_t, alpha=alphas)
        one_by_one = [record(alpha=a.item())(z_s[i : i + 1], z_t[i : i + 1]) for i, a in enumerate(alphas)]
        torch.testing.assert_close(together, torch.cat(one_by_one))
        torch.testing.assert_close(record()(z_s, z_t, alpha=alphas), together)


def test_detaching_the_mixture_changes_the_gradient_and_not_the_value() -> None:
    z_s, z_t = random_logits()
    gradients = []
    for detach in (False, True):
        leaf = z_s.clone().requires_grad_()
        value = SkewReverseKL(detach_mixture=detach)(leaf, z_t)
        torch.testing.assert_close(value, SkewReverseKL()(z_s, z_t))
        gradients.append(torch.autograd.grad(value.sum(), leaf)[0])
    assert (gradients[0] - gradients[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("divergence", "coefficient"),
    [
        (ForwardKL(), lambda p, q, m: -p / q),
        (ReverseKL(), lambda p, q, m: (q / p).log()),
        (SkewKL(alpha=0.2), lambda p, q, m: -0.8 * p / (0.2 * p + 0.8 * q)),
        (SkewReverseKL(alpha=0.2), lambda p, q, m: (q / m).log() + 1 - 0.2 * q / m),
        (SkewReverseKL(alpha=0.2, detach_mixture=True), lambda p, q, m: (q / m).log()),
    ],
    ids=name_of,
)
def test_gradient_is_the_closed_form(divergence, coefficient) -> None:
    z_s, z_t = random_logits()
    p, q = z_t.softmax(-1), z_s.softmax(-1)
    c = coefficient(p, q, 0.8 * p + 0.2 * q)
    (gradient,) = torch.autograd.grad(divergence(z_s.requires_grad_(), z_t).sum(), z_s)
    torch.testing.assert_close(gradient, q * (c - (q * c).sum(-1, keepdim=True)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("divergence", "value"),
    [(SkewKL(), 1.15129), (JensenShannon(), 0.34657), (TotalVariation(), 0.5)],
    ids=name_of,
)
def test_support_mismatch_counts_at_its_exact_value(divergence, value: float, dtype: torch.dtype) -> None:
    z_s, z_t = log_of(MISMATCH_Q, dtype=dtype), log_of(MISMATCH_P, dtype=dtype)
    assert divergence(z_s, z_t).item() == pytest.approx(value, abs=5e-6)


@pytest.mark.parametrize("divergence", FINITE_AT_MISMATCH, ids=name_of)
def test_gradient_is_finite_at_a_support_mismatch(divergence) -> None:
    # The fourth token is impossible for both, the last row has no mismatch but that one.
    z_s = log_of([*MISMATCH_Q, 0.0], [0.2, 0.3, 0.5, 0.0], dtype=torch.float32).requires_grad_()
    z_t = log_of([*MISMATCH_P, 0.0], [0.4, 0.5, 0.1, 0.0], dtype=torch.float32)
    value = divergence(z_s, z_t)
    (gradient,) = torch.autograd.grad(value.sum(), z_s)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(value[1:], divergence(z_s[1:, :3], z_t[1:, :3]))


@pytest.mark.parametrize("divergence", [ForwardKL(), ReverseKL(), SymmetricKL()], ids=name_of)
def test_kl_is_infinite_in_the_row_of_a_support_mismatch_only(divergence) -> None:
    z_s, z_t = log_of(MISMATCH_Q, [0.2, 0.0, 0.8]), log_of(MISMATCH_P, [0.6, 0.0, 0.4])
    value = divergence(z_s, z_t)
    assert value[0] == torch.inf
    torch.testing.assert_close(value[1:], divergence(z_s[1:, ::2], z_t[1:, ::2]))


def test_forward_kl_is_finite_where_only_the_teacher_lacks_a_token() -> None:
    z_s = log_of([0.5, 0.25, 0.25]).requires_grad_()
    value = ForwardKL()(z_s, log_of([0.5, 0.5, 0.0]))
    assert value.item() == pytest.approx(0.5 * math.log(2))
    (gradient,) = torch.autograd.grad(value.sum(), z_s)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, -0.25, 0.25]], dtype=torch.float64))


@every_divergence
def test_extreme_logits_give_no_nan_in_float32(divergence) -> None:
    z_s, z_t = random_logits(rows=20, dtype=torch.float32)
    z_s = (100 * z_s).requires_grad_()
    (gradient,) = torch.autograd.grad(divergence(z_s, 100 * z_t).sum(), z_s)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [
        (ForwardKL(), 2.5918601),
        (ReverseKL(), 3.0957320),
        (TotalVariation(), 0.8269057),
        (JensenShannon(beta=0.1), 0.1938253),
        (JensenShannon(beta=0.5), 0.4637527),
        (JensenShannon(beta=0.9), 0.2051075),
        (SkewKL(alpha=0.1), 1.5526724),
        (SkewReverseKL(alpha=0.1), 1.5781245),
        (AdaptiveKL(), 2.9509617),
        (AlphaBeta(alpha=0.2, beta=0.7), 3.2381651),
        (AlphaBeta(alpha=0.5, beta=0.5), 2.2081683),
    ],
    ids=name_of,
)
def test_toy_values_of_the_methods_page(divergence, expected: float) -> None:
    z_s, z_t, _ = toy_logits()
    assert divergence(z_s[TOY_MASK], z_t[TOY_MASK]).mean().item() == pytest.approx(expected, abs=1e-6)


def test_forward_kl_plus_teacher_entropy_is_cross_entropy() -> None:
    z_s, z_t, _ = (logits[TOY_MASK] for logits in toy_logits())
    p = z_t.softmax(-1)
    entropy = -(p * p.log()).sum(-1).mean()
    assert entropy.item() == pytest.approx(1.3350019, abs=1e-6)
    cross_entropy = -(p * z_s.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(ForwardKL()(z_s, z_t).mean() + entropy, cross_entropy)


@pytest.mark.parametrize("widths", [(11, 13), (13, 11)])
def test_restriction_to_shared_ids_gives_the_toy_values(widths: tuple[int, int]) -> None:
    z_s = 2 * torch.sin(1 + 0.7 * torch.arange(widths[0], dtype=torch.float64))[None, :11]
    z_t = 3 * torch.cos(0.2 + 0.9 * torch.arange(widths[1], dtype=torch.float64))[None, :11]
    values = [ForwardKL()(z_s, z_t), ReverseKL()(z_s, z_t), SkewKL()(z_s, z_t)]
    assert [value.item() for value in values] == pytest.approx([1.8063188, 2.3252349, 1.1296354], abs=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SkewKL(alpha=0.0),
        lambda: SkewReverseKL(alpha=1.0),
        lambda: JensenShannon(beta=1.5),
        lambda: AdaptiveKL(head_mass=0.0),
        lambda: AlphaBeta(alpha=-0.1),
        lambda: SymmetricKL(weights=(1.0, 0.0)),
    ],
)
def test_parameters_outside_their_range_are_config_errors(make) -> None:
    with pytest.raises(ConfigError, match=r"expected .*got"):
        make()
