"""Arithmetic of probabilities and their logarithms where a token may be impossible: 0 log 0 = 0.

Two kinds: functions that autograd can follow, and in-place ones for gradients in closed form, which would
otherwise keep three to five tensors of the logits' size.
"""

import math
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Logits: TypeAlias = Float[Tensor, "resp vocab"]
LogProbs: TypeAlias = Float[Tensor, "resp vocab"]
Gradient: TypeAlias = Float[Tensor, "resp vocab"]
Values: TypeAlias = Float[Tensor, " resp"]
Skew: TypeAlias = float | Float[Tensor, " resp"]


def log_probs(logits: Logits) -> LogProbs:
    """Return log-probabilities in float32, or in float64 for float64 logits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)


def kl_from_log_probs(log_p: LogProbs, log_q: LogProbs) -> Values:
    """Return KL(p || q), entropy of p included: zero at p = q, inf where p has mass that q lacks."""
    impossible = log_p == -torch.inf
    # The mask comes before the product: 0 * (-inf) is NaN, forwards and backwards.
    gap = (log_p - log_q).masked_fill(impossible, 0.0)
    return (log_p.exp() * gap).sum(dim=-1)


def log_blend(log_a: LogProbs, log_b: LogProbs, *, weight: Skew) -> LogProbs:
    """Return log(weight a + (1 - weight) b), with 0 < weight < 1.

    A token that both lack comes out near the smallest finite number instead of -inf, because the gradient of
    logaddexp is NaN at two infinities; such tokens have no mass to weigh it with.
    """
    log_weight, log_rest = _log_weights(weight)
    floored = log_b.clamp_min(torch.finfo(log_b.dtype).min / 4)
    return torch.logaddexp(log_a + log_weight, floored + log_rest)


def _log_weights(weight: Skew) -> tuple[float | Tensor, float | Tensor]:
    if isinstance(weight, Tensor):
        return column(weight.log()), column(torch.log1p(-weight))
    return math.log(weight), math.log1p(-weight)


def column(skew: Skew) -> float | Tensor:
    """Return one number per row as [resp, 1], which multiplies [resp, vocab]; a plain number as it is."""
    return skew[:, None] if isinstance(skew, Tensor) else skew


def blend(log_a: LogProbs, log_b: LogProbs, *, weight: Skew) -> tuple[Tensor, Tensor, Tensor]:
    """Return the probabilities a, b and weight a + (1 - weight) b, which is at least the smallest normal."""
    # log(a / mixture) follows; the difference of two logarithms would be less exact where a is small.
    a, b = log_a.exp(), log_b.exp()
    mixture = b.lerp(a, column(weight))
    return a, b, mixture.clamp_min_(torch.finfo(mixture.dtype).tiny)


def weighted(probs: Tensor, gap: Tensor) -> Tensor:
    """Return probs * gap in place of `gap`, with 0 log 0 = 0; infinite where there is mass."""
    return gap.mul_(probs).nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)


def centred(product: Tensor, q: Tensor, total: Values) -> Gradient:
    """Return q c - q sum(q c) in place of `product`, which is q c with the row sums `total`.

    With c the derivative of a divergence for log q, this is its gradient for the logits: moving one logit
    moves every log q of its row through the normalisation.
    """
    return product.addcmul_(q, total[:, None], value=-1)
