"""Divergences together with their gradients for the student's logits, in closed form where there is one.

Autograd would keep three to five tensors of the logits' size. The closed forms keep none: with the derivative
c of a divergence for log q, the gradient for the logits is q (c - sum q c). `value_and_gradient` is the one
place that decides between them and autograd, for the divergences without a closed form. The values are those
of divergences.py, and the tests hold both against it.
"""

from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm_distill.losses.divergences import (
    CrossEntropy,
    Divergence,
    ForwardKL,
    JensenShannon,
    LogProbs,
    NegativeLogLikelihood,
    ReverseKL,
    SampledReverseKL,
    Skew,
    SkewKL,
    SkewReverseKL,
    SymmetricKL,
    TotalVariation,
    Values,
)

Gradient: TypeAlias = Float[Tensor, "resp vocab"]


@torch.no_grad()
def value_and_gradient(
    divergence: Divergence, log_q: LogProbs, log_p: LogProbs, *, alpha: Skew | None = None
) -> tuple[Values, Gradient]:
    """Return the divergence of each row and its gradient for the student's logits, a new tensor.

    `alpha` replaces the own alpha of a skewed divergence, also with one number per row. A row whose
    log-probabilities are NaN, because a logit was not finite, has the value NaN.
    """
    match divergence:
        case ForwardKL():
            values, gradient = _forward_kl(log_q, log_p)
        case CrossEntropy():
            values, gradient = _cross_entropy(log_q, log_p)
        case ReverseKL():
            values, gradient = _reverse_kl(log_q, log_p)
        case SymmetricKL():
            values, gradient = _symmetric_kl(log_q, log_p, weights=divergence.weights)
        case SkewKL():
            values, gradient = _skew_kl(log_q, log_p, alpha=divergence.alpha if alpha is None else alpha)
        case SkewReverseKL():
            alpha = divergence.alpha if alpha is None else alpha
            values, gradient = _skew_reverse_kl(log_q, log_p, alpha=alpha, detach=divergence.detach_mixture)
        case JensenShannon():
            values, gradient = _jensen_shannon(log_q, log_p, beta=divergence.beta)
        case TotalVariation():
            values, gradient = _total_variation(log_q, log_p)
        case _:
            values, gradient = _by_autograd(divergence, log_q, log_p)
    # log_softmax makes every entry of such a row NaN; what sets 0 log 0 to 0 may have lost them.
    lost = log_q[:, 0].isnan() | log_p[:, 0].isnan()
    return values.masked_fill_(lost, torch.nan), gradient


@torch.no_grad()
def label_value_and_gradient(
    divergence: NegativeLogLikelihood | SampledReverseKL,
    log_q: LogProbs,
    *,
    columns: Int[Tensor, " resp"],
    student_log_probs: Float[Tensor, " resp"],
    teacher_log_probs: Float[Tensor, " resp"] | None,
) -> tuple[Values, Gradient]:
    """Return the same for a divergence that reads the labels' log-probabilities only.

    A label outside the restricted vocabulary, in a negative column, has no gradient.
    """
    if isinstance(divergence, NegativeLogLikelihood):
        values = divergence(student_log_probs)
        slope = torch.full_like(values, -1.0)
    else:
        assert teacher_log_probs is not None, f"{divergence.kind} needs teacher rows"
        values = divergence(student_log_probs, teacher_log_probs)
        slope = values  # the ratio is the derivative of itself
    slope = slope.masked_fill(columns < 0, 0.0)[:, None]
    gradient = log_q.exp().mul_(-slope)
    return values, gradient.scatter_add_(1, columns.clamp_min(0)[:, None], slope)


def _by_autograd(divergence: Divergence, log_q: LogProbs, log_p: LogProbs) -> tuple[Values, Gradient]:
    with torch.enable_grad():
        # Log-probabilities are logits, with the same gradient as any others.
        leaf = log_q.detach().requires_grad_()
        values = divergence(leaf, log_p)
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), gradient


def _weighted(probs: Tensor, gap: Tensor) -> Tensor:
    """Return probs * gap in place of `gap`, with 0 log 0 = 0; infinite where there is mass."""
    return gap.mul_(probs).nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)


def _centred(product: Tensor, q: Tensor, total: Values) -> Gradient:
    """Return q c - q sum(q c) in place of `product`, which is q c with the row sums `total`."""
    return product.addcmul_(q, total[:, None], value=-1)


def _mixture(log_a: LogProbs, log_b: LogProbs, *, weight: Skew) -> tuple[Tensor, Tensor, Tensor]:
    """Return the probabilities a, b and weight a + (1 - weight) b, which is at least the smallest normal."""
    # log(a / mixture) follows; the difference of two logarithms would be less exact where a is small.
    a, b = log_a.exp(), log_b.exp()
    mixture = b.lerp(a, _column(weight))
    return a, b, mixture.clamp_min_(torch.finfo(mixture.dtype).tiny)


def _column(skew: Skew) -> float | Tensor:
    return skew[:, None] if isinstance(skew, Tensor) else skew


def _forward_kl(log_q: LogProbs, log_p: LogProbs) -> tuple[Values, Gradient]:
    """The derivative is c = -p / q."""
    p = log_p.exp()
    values = _weighted(p, log_p - log_q).sum(dim=1)
    return values, log_q.exp().sub_(p)


def _cross_entropy(log_q: LogProbs, log_p: LogProbs) -> tuple[Values, Gradient]:
    """The derivative is c = -p / q."""
    p = log_p.exp()
    values = _weighted(p, -log_q).sum(dim=1)
    return values, log_q.exp().sub_(p)


def _reverse_kl(log_q: LogProbs, log_p: LogProbs) -> tuple[Values, Gradient]:
    """The derivative is c = log(q / p), up to a constant."""
    q = log_q.exp()
    product = _weighted(q, log_q - log_p)
    values = product.sum(dim=1)
    return values, _centred(product, q, values)


def _symmetric_kl(
    log_q: LogProbs, log_p: LogProbs, *, weights: tuple[float, float]
) -> tuple[Values, Gradient]:
    forward, forward_gradient = _forward_kl(log_q, log_p)
    reverse, reverse_gradient = _reverse_kl(log_q, log_p)
    values = weights[0] * forward + weights[1] * reverse
    return values, reverse_gradient.mul_(weights[1]).add_(forward_gradient, alpha=weights[0])


def _skew_kl(log_q: LogProbs, log_p: LogProbs, *, alpha: Skew) -> tuple[Values, Gradient]:
    """The derivative is c = -(1 - a) p / m, m = a p + (1 - a) q."""
    p, q, mixture = _mixture(log_p, log_q, weight=alpha)
    ratio = p / mixture
    product = q * ratio
    values = _weighted(p, ratio.log_()).sum(dim=1)
    gradient = _centred(product, q, product.sum(dim=1))
    return values, gradient.mul_(_column(alpha - 1))


def _skew_reverse_kl(
    log_q: LogProbs, log_p: LogProbs, *, alpha: Skew, detach: bool
) -> tuple[Values, Gradient]:
    """The derivative is c = log(q / m) - a q / m, up to a constant, m = (1 - a) p + a q.

    With `detach`, which takes m as a constant, the second part is missing.
    """
    q, _, mixture = _mixture(log_q, log_p, weight=alpha)
    ratio = q / mixture
    own = None if detach else (q * ratio).mul_(_column(alpha))
    product = _weighted(q, ratio.log_())
    values = product.sum(dim=1)
    if own is None:
        return values, _centred(product, q, values)
    return values, _centred(product.sub_(own), q, values - own.sum(dim=1))


def _jensen_shannon(log_q: LogProbs, log_p: LogProbs, *, beta: float) -> tuple[Values, Gradient]:
    """The derivative is c = (1 - b) log(q / m), up to a constant, m = b p + (1 - b) q."""
    p, q, mixture = _mixture(log_p, log_q, weight=beta)
    forward = _weighted(p, (p / mixture).log_()).sum(dim=1)
    product = _weighted(q, (q / mixture).log_())
    reverse = product.sum(dim=1)
    return beta * forward + (1 - beta) * reverse, _centred(product, q, reverse).mul_(1 - beta)


def _total_variation(log_q: LogProbs, log_p: LogProbs) -> tuple[Values, Gradient]:
    """The derivative is c = sign(q - p) / 2."""
    q = log_q.exp()
    gap = q - log_p.exp()
    values = gap.abs().sum(dim=1) / 2
    product = gap.sign_().mul_(q).div_(2)
    return values, _centred(product, q, product.sum(dim=1))
