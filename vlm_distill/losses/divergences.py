"""Per-token divergences between a teacher p and a student q: logits in, nats out.

Each formula exists once, as a function that also takes one skew per row; the records below give it a name,
its parameters and a place in configs. Which rows count and how they are averaged is decided in objective.py,
how logits are made in linear.py.

Support: 0 log 0 = 0. A token that is impossible for one model only (logit -inf) counts at its exact value in
the skewed divergences, Jensen-Shannon and total variation, with finite gradients; forward and reverse KL
return inf for that row, and support.py names the token.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from vlm_distill.errors import ConfigError

Logits: TypeAlias = Float[Tensor, "resp vocab"]
LogProbs: TypeAlias = Float[Tensor, "resp vocab"]
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
        return weight.log()[:, None], torch.log1p(-weight)[:, None]
    return math.log(weight), math.log1p(-weight)


def forward_kl(student_logits: Logits, teacher_logits: Logits) -> Values:
    """Return KL(p || q)."""
    return kl_from_log_probs(log_probs(teacher_logits), log_probs(student_logits))


def reverse_kl(student_logits: Logits, teacher_logits: Logits) -> Values:
    """Return KL(q || p)."""
    return kl_from_log_probs(log_probs(student_logits), log_probs(teacher_logits))


def cross_entropy(student_logits: Logits, teacher_logits: Logits) -> Values:
    """Return -sum p log q: KL(p || q) plus the entropy of p, inf where p has mass that q lacks."""
    log_q, log_p = log_probs(student_logits), log_probs(teacher_logits)
    return -(log_p.exp() * log_q.masked_fill(log_p == -torch.inf, 0.0)).sum(dim=-1)


def skew_kl(student_logits: Logits, teacher_logits: Logits, *, alpha: Skew) -> Values:
    """Return KL(p || alpha p + (1 - alpha) q). DistiLLM, arXiv:2402.03898, Sec. 3.1."""
    log_q, log_p = log_probs(student_logits), log_probs(teacher_logits)
    return kl_from_log_probs(log_p, log_blend(log_p, log_q, weight=alpha))


def skew_reverse_kl(
    student_logits: Logits, teacher_logits: Logits, *, alpha: Skew, detach_mixture: bool = False
) -> Values:
    """Return KL(q || (1 - alpha) p + alpha q), optionally with q in the mixture as a constant."""
    log_q, log_p = log_probs(student_logits), log_probs(teacher_logits)
    mixed_in = log_q.detach() if detach_mixture else log_q
    return kl_from_log_probs(log_q, log_blend(mixed_in, log_p, weight=alpha))


def jensen_shannon(student_logits: Logits, teacher_logits: Logits, *, beta: Skew) -> Values:
    """Return beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q. GKD, arXiv:2306.13649."""
    log_q, log_p = log_probs(student_logits), log_probs(teacher_logits)
    log_mixture = log_blend(log_p, log_q, weight=beta)
    return beta * kl_from_log_probs(log_p, log_mixture) + (1 - beta) * kl_from_log_probs(log_q, log_mixture)


def total_variation(student_logits: Logits, teacher_logits: Logits) -> Values:
    """Return half the L1 distance, in [0, 1]."""
    return (log_probs(teacher_logits).exp() - log_probs(student_logits).exp()).abs().sum(dim=-1) / 2


def adaptive_kl(student_logits: Logits, teacher_logits: Logits, *, head_mass: float) -> Values:
    """Return forward and reverse KL weighted by the gap on head and tail of p. AKL, arXiv:2404.02657.

    The head is every token, most probable first, whose cumulative p stays within `head_mass`, and always the
    first one.
    """
    log_q, log_p = log_probs(student_logits), log_probs(teacher_logits)
    with torch.no_grad():
        p, order = log_p.exp().sort(dim=-1, descending=True, stable=True)
        gap = (p - log_q.exp().gather(-1, order)).abs()
        in_head = p.cumsum(dim=-1) <= head_mass
        in_head[:, 0] = True
        head_gap, tail_gap = (gap * in_head).sum(dim=-1), (gap * ~in_head).sum(dim=-1)
        total = (head_gap + tail_gap).clamp_min(torch.finfo(gap.dtype).tiny)  # p = q: 0 / tiny, not 0 / 0
    forward = head_gap / total * kl_from_log_probs(log_p, log_q)
    reverse = tail_gap / total * kl_from_log_probs(log_q, log_p)
    # A direction without weight does not count, even where its KL is infinite.
    return forward.where(head_gap != 0, 0.0) + reverse.where(tail_gap != 0, 0.0)


def alpha_beta(student_logits: Logits, teacher_logits: Logits, *, alpha: float, beta: float) -> Values:
    """Return the alpha-beta divergence for alpha, beta >= 0, limits at zero included. ABKD, arXiv:2505.04560.

    The limits are those of Cichocki et al., Entropy 2011, 13, 134: (1, 0) is forward KL, (0, 1) is reverse
    KL.
    """
    log_q, log_p = log_probs(student_logits), log_probs(teacher_logits)
    if alpha == 0 and beta == 0:
        both_impossible = (log_p == -torch.inf) & (log_q == -torch.inf)
        return (log_p - log_q).masked_fill(both_impossible, 0.0).square().sum(dim=-1) / 2
    if beta == 0:
        return _alpha_limit(log_p, log_q, power=alpha)
    if alpha == 0:
        return _alpha_limit(log_q, log_p, power=beta)
    order = alpha + beta
    cross = (alpha * log_p + beta * log_q).exp()
    own = alpha / order * (order * log_p).exp() + beta / order * (order * log_q).exp()
    return (own - cross).sum(dim=-1) / (alpha * beta)


def _alpha_limit(log_a: LogProbs, log_b: LogProbs, *, power: float) -> Values:
    """Return 1/power^2 sum[a^power log(a^power / b^power) - a^power + b^power]."""
    log_a, log_b = power * log_a, power * log_b
    return (kl_from_log_probs(log_a, log_b) - (log_a.exp() - log_b.exp()).sum(dim=-1)) / power**2


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardKL:
    """KL(p || q): covers every mode of the teacher. Infinite where q lacks a token of p."""

    kind: Literal["forward_kl"] = "forward_kl"

    def __call__(self, student_logits: Logits, teacher_logits: Logits) -> Values:
        return forward_kl(student_logits, teacher_logits)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReverseKL:
    """KL(q || p): seeks a mode of the teacher. Infinite where p lacks a token of q."""

    kind: Literal["reverse_kl"] = "reverse_kl"

    def __call__(self, student_logits: Logits, teacher_logits: Logits) -> Values:
        return reverse_kl(student_logits, teacher_logits)


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossEntropy:
    """-sum p log q: the gradient of forward KL, and as a value the entropy of p more."""

    kind: Literal["cross_entropy"] = "cross_entropy"

    def __call__(self, student_logits: Logits, teacher_logits: Logits) -> Values:
        return cross_entropy(student_logits, teacher_logits)


@dataclass(frozen=True, kw_only=True, slots=True)
class SkewKL:
    """KL(p || alpha p + (1 - alpha) q), bounded by -log(alpha). DistiLLM, arXiv:2402.03898, Sec. 3.1.

    A call may give one alpha per row in place of the record's own.
    """

    kind: Literal["skew_kl"] = "skew_kl"
    alpha: float = 0.1

    def __post_init__(self) -> None:
        _require(0 < self.alpha < 1, f"alpha of {self.kind}: expected 0 < alpha < 1, got {self.alpha}")

    def __call__(
        self, student_logits: Logits, teacher_logits: Logits, *, alpha: Skew | None = None
    ) -> Values:
        return skew_kl(student_logits, teacher_logits, alpha=self.alpha if alpha is None else alpha)


@dataclass(frozen=True, kw_only=True, slots=True)
class SkewReverseKL:
    """KL(q || (1 - alpha) p + alpha q), bounded by -log(alpha). DistiLLM, arXiv:2402.03898, Sec. 3.1.

    `detach_mixture` takes q inside the mixture as a constant, as the public DistiLLM-2 code does; the value
    is the same, the gradient is not. A call may give one alpha per row in place of the record's own.
    """

    kind: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    alpha: float = 0.1
    detach_mixture: bool = False

    def __post_init__(self) -> None:
        _require(0 < self.alpha < 1, f"alpha of {self.kind}: expected 0 < alpha < 1, got {self.alpha}")

    def __call__(
        self, student_logits: Logits, teacher_logits: Logits, *, alpha: Skew | None = None
    ) -> Values:
        return skew_reverse_kl(
            student_logits,
            teacher_logits,
            alpha=self.alpha if alpha is None else alpha,
            detach_mixture=self.detach_mixture,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class JensenShannon:
    """beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q. GKD, arXiv:2306.13649."""

    kind: Literal["jensen_shannon"] = "jensen_shannon"
    beta: float = 0.5

    def __post_init__(self) -> None:
        _require(0 < self.beta < 1, f"beta of {self.kind}: expected 0 < beta < 1, got {self.beta}")

    def __call__(self, student_logits: Logits, teacher_logits: Logits) -> Values:
        return jensen_shannon(student_logits, teacher_logits, beta=self.beta)


@dataclass(frozen=True, kw_only=True, slots=True)
class TotalVariation:
    """Half the L1 distance between p and q, in [0, 1]."""

    kind: Literal["total_variation"] = "total_variation"

    def __call__(self, student_logits: Logits, teacher_logits: Logits) -> Values:
        return total_variation(student_logits, teacher_logits)


@dataclass(frozen=True, kw_only=True, slots=True)
class SymmetricKL:
    """Forward and reverse KL, weighted in this order."""

    kind: Literal["symmetric_kl"] = "symmetric_kl"
    weights: tuple[float, float] = (0.5, 0.5)

    def __post_init__(self) -> None:
        _require(
            min(self.weights) > 0,
            f"weights of {self.kind}: expected two positive numbers, got {self.weights}",
        )

    def __call__(self, student_logits: Logits, teacher_logits: Logits) -> Values:
        log_q, log_p = log_probs(student_logits), log_probs(teacher_logits)
        forward, reverse = kl_from_log_probs(log_p, log_q), kl_from_log_probs(log_q, log_p)
        return self.weights[0] * forward + self.weights[1] * reverse


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveKL:
    """Forward and reverse KL weighted by the gap on head and tail of p. AKL, arXiv:2404.02657."""

    kind: Literal["adaptive_kl"] = "adaptive_kl"
    head_mass: float = 0.5

    def __post_init__(self) -> None:
        _require(
            0 < self.head_mass < 1,
            f"head_mass of {self.kind}: expected 0 < head_mass < 1, got {self.head_mass}",
        )

    def __call__(self, student_logits: Logits, teacher_logits: Logits) -> Values:
        return adaptive_kl(student_logits, teacher_logits, head_mass=self.head_mass)


@dataclass(frozen=True, kw_only=True, slots=True)
class AlphaBeta:
    """The alpha-beta divergence, by default with the paper's values for text. ABKD, arXiv:2505.04560."""

    kind: Literal["alpha_beta"] = "alpha_beta"
    alpha: float = 0.2
    beta: float = 0.7

    def __post_init__(self) -> None:
        # Negative powers would make a support mismatch and even a shared zero infinite.
        _require(
            self.alpha >= 0 and self.beta >= 0,
            f"{self.kind}: expected alpha >= 0 and beta >= 0, got {self.alpha} and {self.beta}",
        )

    def __call__(self, student_logits: Logits, teacher_logits: Logits) -> Values:
        return alpha_beta(student_logits, teacher_logits, alpha=self.alpha, beta=self.beta)


@dataclass(frozen=True, kw_only=True, slots=True)
class NegativeLogLikelihood:
    """-log q(label), the divergence from a one-hot target. It reads no teacher."""

    kind: Literal["negative_log_likelihood"] = "negative_log_likelihood"

    def __call__(self, label_log_probs: Float[Tensor, " resp"]) -> Values:
        return -label_log_probs


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledReverseKL:
    """log q - log p of the sampled token, whose mean over the student's own samples is KL(q || p).

    Its gradient is that of the policy-gradient loss -r A with the advantage A = log p - log q as a constant
    and r the ratio of the current to the sampling policy: 1 in value on fresh responses, so that the loss
    needs no second set of log-probabilities.
    """

    kind: Literal["sampled_reverse_kl"] = "sampled_reverse_kl"

    def __call__(
        self, student_log_probs: Float[Tensor, " resp"], teacher_log_probs: Float[Tensor, " resp"]
    ) -> Values:
        constant = student_log_probs.detach()
        return (student_log_probs - constant).exp() * (constant - teacher_log_probs)


SkewDivergence: TypeAlias = SkewKL | SkewReverseKL
Divergence: TypeAlias = (
    ForwardKL
    | CrossEntropy
    | ReverseKL
    | SkewKL
    | SkewReverseKL
    | JensenShannon
    | TotalVariation
    | SymmetricKL
    | AdaptiveKL
    | AlphaBeta
)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)
