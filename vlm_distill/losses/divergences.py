"""Per-token divergences between a teacher p and a student q: logits in, nats out.

A record is a divergence with its parameters, its name in configs and the one place of its formula: `values`,
which autograd can follow, and `closed_form`, the same with the gradient. Which rows count and how they are
averaged is decided in objective.py, how logits are made in linear.py.

Support: 0 log 0 = 0. A token that is impossible for one model only (logit -inf) counts at its exact value in
the skewed divergences, Jensen-Shannon and total variation, with finite gradients; forward and reverse KL
return inf for that row, and support.py names the token.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from pydantic import GetPydanticSchema
from torch import Tensor

from vlm_distill.errors import ConfigError
from vlm_distill.losses.log_space import (
    Gradient,
    Logits,
    LogProbs,
    Skew,
    Values,
    blend,
    centred,
    column,
    kl_from_log_probs,
    log_blend,
    log_probs,
    weighted,
)
from vlm_distill.losses.row_blocks import RowBlock, RowDivergence
from vlm_distill.losses.targets import RowTarget

Parameter: TypeAlias = Annotated[Skew, GetPydanticSchema(lambda _, handler: handler(float))]
"""A number in configs; `at` puts one per row in its place."""


@runtime_checkable
class DivergenceConfig(RowDivergence, Protocol):
    """A divergence that configs name: a frozen record, whose fields are its parameters."""

    __slots__ = ()

    @property
    def kind(self) -> str: ...


class DistributionDivergence(RowDivergence, Protocol):
    """What all divergences between two distributions share. A record implements `values`.

    Where it is worth it, a record implements `closed_form` too. With c the derivative of the divergence for
    log q, the gradient for the logits is q (c - sum q c): a constant in c changes nothing.
    """

    __slots__ = ()

    def __call__(self, student_logits: Logits, teacher_logits: Logits) -> Values:
        return self.values(log_probs(student_logits), log_probs(teacher_logits))

    def values(self, log_q: LogProbs, log_p: LogProbs) -> Values: ...

    def closed_form(self, log_q: LogProbs, log_p: LogProbs) -> tuple[Values, Gradient] | None:
        """Return values and gradients for the student's logits, new tensors; None leaves it to autograd."""
        return None

    @torch.no_grad()
    def value_and_gradient(self, log_q: LogProbs, log_p: LogProbs) -> tuple[Values, Gradient]:
        """Return the divergence of each row and its gradient for the student's logits, a new tensor.

        A row whose log-probabilities are NaN, because a logit was not finite, has the value NaN.
        """
        values, gradient = self.closed_form(log_q, log_p) or self._by_autograd(log_q, log_p)
        # log_softmax makes every entry of such a row NaN; what sets 0 log 0 to 0 may have lost them.
        lost = log_q[:, 0].isnan() | log_p[:, 0].isnan()
        return values.masked_fill_(lost, torch.nan), gradient

    def _by_autograd(self, log_q: LogProbs, log_p: LogProbs) -> tuple[Values, Gradient]:
        with torch.enable_grad():
            # Log-probabilities are logits, with the same gradient as any others.
            leaf = log_q.detach().requires_grad_()
            values = self(leaf, log_p)
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), gradient

    def of_rows(self, rows: RowBlock, target: RowTarget) -> tuple[Values, Gradient]:
        assert rows.teacher is not None, f"{type(self).__name__} needs the teacher's distribution"
        return rows.teacher.compare(self.value_and_gradient, rows.log_q, target)


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardKL(DistributionDivergence):
    """KL(p || q): covers every mode of the teacher. Infinite where q lacks a token of p."""

    kind: Literal["forward_kl"] = "forward_kl"

    def values(self, log_q: LogProbs, log_p: LogProbs) -> Values:
        return kl_from_log_probs(log_p, log_q)

    def closed_form(self, log_q: LogProbs, log_p: LogProbs) -> tuple[Values, Gradient]:
        p = log_p.exp()
        values = weighted(p, log_p - log_q).sum(dim=1)
        # c = -p / q, and p sums to 1.
        return values, log_q.exp().sub_(p)


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossEntropy(DistributionDivergence):
    """-sum p log q: the gradient of forward KL, and as a value the entropy of p more."""

    kind: Literal["cross_entropy"] = "cross_entropy"

    def values(self, log_q: LogProbs, log_p: LogProbs) -> Values:
        return -(log_p.exp() * log_q.masked_fill(log_p == -torch.inf, 0.0)).sum(dim=-1)

    def closed_form(self, log_q: LogProbs, log_p: LogProbs) -> tuple[Values, Gradient]:
        p = log_p.exp()
        values = weighted(p, -log_q).sum(dim=1)
        # c = -p / q, and p sums to 1.
        return values, log_q.exp().sub_(p)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReverseKL(DistributionDivergence):
    """KL(q || p): seeks a mode of the teacher. Infinite where p lacks a token of q."""

    kind: Literal["reverse_kl"] = "reverse_kl"

    def values(self, log_q: LogProbs, log_p: LogProbs) -> Values:
        return kl_from_log_probs(log_q, log_p)

    def closed_form(self, log_q: LogProbs, log_p: LogProbs) -> tuple[Values, Gradient]:
        q = log_q.exp()
        # c = log(q / p), so q c is the summand of the value too.
        product = weighted(q, log_q - log_p)
        values = product.sum(dim=1)
        return values, centred(product, q, values)


@dataclass(frozen=True, kw_only=True, slots=True)
class SymmetricKL(DistributionDivergence):
    """Forward and reverse KL, weighted in this order."""

    kind: Literal["symmetric_kl"] = "symmetric_kl"
    weights: tuple[float, float] = (0.5, 0.5)

    def __post_init__(self) -> None:
        _require(
            all(0 < weight < math.inf for weight in self.weights),
            f"weights of {self.kind}: expected two positive numbers, got {self.weights}",
        )

    def values(self, log_q: LogProbs, log_p: LogProbs) -> Values:
        forward, reverse = ForwardKL().values(log_q, log_p), ReverseKL().values(log_q, log_p)
        return self.weights[0] * forward + self.weights[1] * reverse

    def closed_form(self, log_q: LogProbs, log_p: LogProbs) -> tuple[Values, Gradient]:
        forward, forward_gradient = ForwardKL().closed_form(log_q, log_p)
        reverse, reverse_gradient = ReverseKL().closed_form(log_q, log_p)
        values = self.weights[0] * forward + self.weights[1] * reverse
        return values, reverse_gradient.mul_(self.weights[1]).add_(forward_gradient, alpha=self.weights[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class SkewKL(DistributionDivergence):
    """KL(p || alpha p + (1 - alpha) q), bounded by -log(alpha). DistiLLM, arXiv:2402.03898, Sec. 3.1."""

    kind: Literal["skew_kl"] = "skew_kl"
    alpha: Parameter = 0.1

    def __post_init__(self) -> None:
        _require_share("alpha", self.alpha, of=self.kind)

    def at(self, parameter: Values) -> "SkewKL":
        return replace(self, alpha=parameter)

    def values(self, log_q: LogProbs, log_p: LogProbs) -> Values:
        return kl_from_log_probs(log_p, log_blend(log_p, log_q, weight=self.alpha))

    def closed_form(self, log_q: LogProbs, log_p: LogProbs) -> tuple[Values, Gradient]:
        p, q, mixture = blend(log_p, log_q, weight=self.alpha)
        ratio = p / mixture
        # c = -(1 - a) p / m with m = a p + (1 - a) q; its factor comes last.
        product = q * ratio
        values = weighted(p, ratio.log_()).sum(dim=1)
        gradient = centred(product, q, product.sum(dim=1))
        return values, gradient.mul_(column(self.alpha - 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class SkewReverseKL(DistributionDivergence):
    """KL(q || (1 - alpha) p + alpha q), bounded by -log(alpha). DistiLLM, arXiv:2402.03898, Sec. 3.1.

    `detach_mixture` takes q inside the mixture as a constant, as the public DistiLLM-2 code does; the value
    is the same, the gradient is not.
    """

    kind: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    alpha: Parameter = 0.1
    detach_mixture: bool = False

    def __post_init__(self) -> None:
        _require_share("alpha", self.alpha, of=self.kind)

    def at(self, parameter: Values) -> "SkewReverseKL":
        return replace(self, alpha=parameter)

    def values(self, log_q: LogProbs, log_p: LogProbs) -> Values:
        mixed_in = log_q.detach() if self.detach_mixture else log_q
        return kl_from_log_probs(log_q, log_blend(mixed_in, log_p, weight=self.alpha))

    def closed_form(self, log_q: LogProbs, log_p: LogProbs) -> tuple[Values, Gradient]:
        q, _, mixture = blend(log_q, log_p, weight=self.alpha)
        ratio = q / mixture
        # c = log(q / m) - a q / m with m = (1 - a) p + a q; the second part comes from q inside of m.
        own = None if self.detach_mixture else (q * ratio).mul_(column(self.alpha))
        product = weighted(q, ratio.log_())
        values = product.sum(dim=1)
        if own is None:
            return values, centred(product, q, values)
        return values, centred(product.sub_(own), q, values - own.sum(dim=1))


@dataclass(frozen=True, kw_only=True, slots=True)
class JensenShannon(DistributionDivergence):
    """beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q. GKD, arXiv:2306.13649."""

    kind: Literal["jensen_shannon"] = "jensen_shannon"
    beta: Parameter = 0.5

    def __post_init__(self) -> None:
        _require_share("beta", self.beta, of=self.kind)

    def values(self, log_q: LogProbs, log_p: LogProbs) -> Values:
        log_mixture = log_blend(log_p, log_q, weight=self.beta)
        forward, reverse = kl_from_log_probs(log_p, log_mixture), kl_from_log_probs(log_q, log_mixture)
        return self.beta * forward + (1 - self.beta) * reverse

    def closed_form(self, log_q: LogProbs, log_p: LogProbs) -> tuple[Values, Gradient]:
        p, q, mixture = blend(log_p, log_q, weight=self.beta)
        forward = weighted(p, (p / mixture).log_()).sum(dim=1)
        # c = (1 - b) log(q / m): what m adds to the derivative of both parts is a constant.
        product = weighted(q, (q / mixture).log_())
        reverse = product.sum(dim=1)
        values = self.beta * forward + (1 - self.beta) * reverse
        return values, centred(product, q, reverse).mul_(column(1 - self.beta))


@dataclass(frozen=True, kw_only=True, slots=True)
class TotalVariation(DistributionDivergence):
    """Half the L1 distance between p and q, in [0, 1]."""

    kind: Literal["total_variation"] = "total_variation"

    def values(self, log_q: LogProbs, log_p: LogProbs) -> Values:
        return (log_p.exp() - log_q.exp()).abs().sum(dim=-1) / 2

    def closed_form(self, log_q: LogProbs, log_p: LogProbs) -> tuple[Values, Gradient]:
        q = log_q.exp()
        gap = q - log_p.exp()
        values = gap.abs().sum(dim=1) / 2
        # c = sign(q - p) / 2.
        product = gap.sign_().mul_(q).div_(2)
        return values, centred(product, q, product.sum(dim=1))


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveKL(DistributionDivergence):
    """Forward and reverse KL weighted by the gap on head and tail of p. AKL, arXiv:2404.02657.

    The head is every token, most probable first, whose cumulative p stays within `head_mass`, and always the
    first one. The weights are constants for the gradient.
    """

    kind: Literal["adaptive_kl"] = "adaptive_kl"
    head_mass: float = 0.5

    def __post_init__(self) -> None:
        _require_share("head_mass", self.head_mass, of=self.kind)

    def values(self, log_q: LogProbs, log_p: LogProbs) -> Values:
        head_gap, tail_gap = self._gaps(log_q, log_p)
        # p = q: 0 / tiny, not 0 / 0.
        total = (head_gap + tail_gap).clamp_min(torch.finfo(head_gap.dtype).tiny)
        forward = head_gap / total * kl_from_log_probs(log_p, log_q)
        reverse = tail_gap / total * kl_from_log_probs(log_q, log_p)
        # A direction without weight does not count, even where its KL is infinite.
        return forward.where(head_gap != 0, 0.0) + reverse.where(tail_gap != 0, 0.0)

    @torch.no_grad()
    def _gaps(self, log_q: LogProbs, log_p: LogProbs) -> tuple[Values, Values]:
        """Return sum |p - q| over head and tail."""
        p, order = log_p.exp().sort(dim=-1, descending=True, stable=True)
        # Both [resp, vocab], most probable for the teacher first.
        gap = (p - log_q.exp().gather(-1, order)).abs()
        in_head = p.cumsum(dim=-1) <= self.head_mass
        in_head[:, 0] = True
        return (gap * in_head).sum(dim=-1), (gap * ~in_head).sum(dim=-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class AlphaBeta(DistributionDivergence):
    """The alpha-beta divergence, by default with the paper's values for text. ABKD, arXiv:2505.04560.

    The limits at zero are those of Cichocki et al., Entropy 2011, 13, 134: (1, 0) is forward KL, (0, 1) is
    reverse KL.
    """

    kind: Literal["alpha_beta"] = "alpha_beta"
    alpha: float = 0.2
    beta: float = 0.7

    def __post_init__(self) -> None:
        # Negative powers would make a support mismatch and even a shared zero infinite.
        _require(
            0 <= self.alpha < math.inf and 0 <= self.beta < math.inf,
            f"{self.kind}: expected alpha >= 0 and beta >= 0, both finite, got {self.alpha} and {self.beta}",
        )

    def values(self, log_q: LogProbs, log_p: LogProbs) -> Values:
        alpha, beta = self.alpha, self.beta
        if alpha == 0 and beta == 0:
            both_impossible = (log_p == -torch.inf) & (log_q == -torch.inf)
            return (log_p - log_q).masked_fill(both_impossible, 0.0).square().sum(dim=-1) / 2
        if beta == 0:
            return _power_limit(log_p, log_q, power=alpha)
        if alpha == 0:
            return _power_limit(log_q, log_p, power=beta)
        order = alpha + beta
        cross = (alpha * log_p + beta * log_q).exp()
        own = alpha / order * (order * log_p).exp() + beta / order * (order * log_q).exp()
        return (own - cross).sum(dim=-1) / (alpha * beta)


def _power_limit(log_a: LogProbs, log_b: LogProbs, *, power: float) -> Values:
    """Return 1/power^2 sum[a^power log(a^power / b^power) - a^power + b^power]."""
    log_a, log_b = power * log_a, power * log_b
    return (kl_from_log_probs(log_a, log_b) - (log_a.exp() - log_b.exp()).sum(dim=-1)) / power**2


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


def _require_share(name: str, value: Skew, *, of: str) -> None:
    # Numbers per row are made by a schedule inside its bounds, and looking at them would wait for the device.
    if not isinstance(value, Tensor):
        _require(0 < value < 1, f"{name} of {of}: expected 0 < {name} < 1, got {value}")


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
