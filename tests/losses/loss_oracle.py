"""The plain form of vlm_distill.losses: probabilities instead of log-probabilities, full logits, float64.

It shares no code with the package, so that agreement means something. Valid where no probability underflows.
A divergence of the package that has no case here fails every test that compares with it.
"""

from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import get_args

import torch
from torch import Tensor

from vlm_distill.losses import (
    AdaptiveKL,
    AlphaBeta,
    CrossEntropy,
    Divergence,
    ForwardKL,
    JensenShannon,
    NegativeLogLikelihood,
    ReverseKL,
    RowGroup,
    Rows,
    SkewKL,
    SkewReverseKL,
    SymmetricKL,
    TotalVariation,
)

# Settings beside or instead of the default; a divergence without an entry is tested at its default.
SETTINGS: dict[type, list[object]] = {
    SkewKL: [SkewKL(alpha=0.1), SkewKL(alpha=0.9)],
    SkewReverseKL: [SkewReverseKL(alpha=0.1), SkewReverseKL(alpha=0.1, detach_mixture=True)],
    JensenShannon: [JensenShannon(beta=0.5), JensenShannon(beta=0.1)],
    SymmetricKL: [SymmetricKL(weights=(0.3, 0.7))],
    AlphaBeta: [
        AlphaBeta(),
        AlphaBeta(alpha=0.6, beta=0.0),
        AlphaBeta(alpha=0.0, beta=0.6),
        AlphaBeta(alpha=0.0, beta=0.0),
    ],
}
DIVERGENCES = [one for kind in get_args(Divergence) for one in SETTINGS.get(kind, [kind()])]


def is_finite_at_mismatch(divergence: object) -> bool:
    """Return whether a token that is impossible for one model only has a finite value."""
    if isinstance(divergence, AlphaBeta):
        return divergence.alpha > 0 and divergence.beta > 0
    return isinstance(divergence, SkewKL | SkewReverseKL | JensenShannon | TotalVariation)


FINITE_AT_MISMATCH = [one for one in DIVERGENCES if is_finite_at_mismatch(one)]
INFINITE_AT_MISMATCH = [one for one in DIVERGENCES if not is_finite_at_mismatch(one)]


def name_of(value: object) -> str | None:
    """Name a divergence in the id of a test; the id of a function would hold its address."""
    return repr(value).replace("kind=", "").replace(" ", "") if is_dataclass(value) else None


def log_of(*probabilities: list[float], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(probabilities, dtype=dtype).log()


def plain_divergence(
    divergence: object, z_s: Tensor, z_t: Tensor, alpha: Tensor | float | None = None
) -> Tensor:
    """Return the divergence per row from the formulas of the papers, over the last dimension."""
    q, p = z_s.softmax(-1), z_t.softmax(-1)

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a / b).log()).sum(-1)

    match divergence:
        case ForwardKL():
            return kl(p, q)
        case CrossEntropy():
            return -(p * q.log()).sum(-1)
        case ReverseKL():
            return kl(q, p)
        case SkewKL():
            a = divergence.alpha if alpha is None else alpha
            a = a[..., None] if isinstance(a, Tensor) else a
            return kl(p, a * p + (1 - a) * q)
        case SkewReverseKL():
            a = divergence.alpha if alpha is None else alpha
            a = a[..., None] if isinstance(a, Tensor) else a
            return kl(q, (1 - a) * p + a * (q.detach() if divergence.detach_mixture else q))
        case JensenShannon():
            m = divergence.beta * p + (1 - divergence.beta) * q
            return divergence.beta * kl(p, m) + (1 - divergence.beta) * kl(q, m)
        case TotalVariation():
            return (p - q).abs().sum(-1) / 2
        case SymmetricKL():
            return divergence.weights[0] * kl(p, q) + divergence.weights[1] * kl(q, p)
        case AdaptiveKL():
            return _adaptive(divergence.head_mass, p, q)
        case AlphaBeta():
            return _alpha_beta(divergence.alpha, divergence.beta, p, q)
    raise AssertionError(divergence)


def _adaptive(head_mass: float, p: Tensor, q: Tensor) -> Tensor:
    values = []
    for p_row, q_row in zip(p.flatten(0, -2), q.flatten(0, -2), strict=True):
        head, mass = [], 0.0
        for token in sorted(range(len(p_row)), key=lambda token: -p_row[token].item()):
            mass += p_row[token].item()
            if head and mass > head_mass:
                break
            head.append(token)
        tail = [token for token in range(len(p_row)) if token not in head]
        gap = (p_row - q_row).detach().abs()
        g_h, g_t = gap[head].sum(), gap[tail].sum()
        forward = (p_row * (p_row / q_row).log()).sum()
        reverse = (q_row * (q_row / p_row).log()).sum()
        values.append((g_h * forward + g_t * reverse) / (g_h + g_t))
    return torch.stack(values).reshape(p.shape[:-1])


def _alpha_beta(a: float, b: float, p: Tensor, q: Tensor) -> Tensor:
    if a == 0 and b == 0:
        return ((p / q).log() ** 2).sum(-1) / 2
    if b == 0:
        return (p**a * (p**a / q**a).log() - p**a + q**a).sum(-1) / a**2
    if a == 0:
        return (q**b * (q**b / p**b).log() - q**b + p**b).sum(-1) / b**2
    return -(p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)).sum(-1) / (a * b)


def full_logits(rows: Rows) -> Tensor:
    logits = rows.hidden @ rows.head.weight.T
    if rows.head.bias is not None:
        logits = logits + rows.head.bias
    logits = logits * rows.head.scale
    if rows.head.soft_cap is not None:
        logits = rows.head.soft_cap * torch.tanh(logits / rows.head.soft_cap)
    return logits[:, [rows.compared.token_id(column) for column in range(rows.num_columns)]]


def plain_linear_divergence(
    student: Rows, teacher: Rows | None, groups: Sequence[RowGroup], columns: Tensor
) -> Tensor:
    """Return the loss of `linear_divergence` from full logits; `columns` are labels after the restriction."""
    z_s = full_logits(student)
    z_t = None if teacher is None else full_logits(teacher).detach()
    every = torch.arange(len(columns))
    log_q = z_s.softmax(-1)[every, columns].log()
    loss = z_s.sum() * 0
    for group in groups:
        if isinstance(group.divergence, NegativeLogLikelihood):
            values = -log_q[group.rows]
        else:
            assert z_t is not None
            alpha = group.parameter
            if callable(alpha):
                log_p = z_t.softmax(-1)[every, columns].log()
                alpha = alpha(log_q.detach()[group.rows], log_p[group.rows])
            values = plain_divergence(group.divergence, z_s[group.rows], z_t[group.rows], alpha)
        loss = loss + (group.weight * values).sum()
    return loss


def toy_logits() -> tuple[Tensor, Tensor, Tensor]:
    """Return z_s, z_t and z_ref of methods.md section 7, each [2, 5, 11]."""
    b, t, v = (torch.arange(n, dtype=torch.float64) for n in (2, 5, 11))
    b, t, v = b[:, None, None], t[:, None], v
    return (
        2 * torch.sin(1 + 0.3 * b + 0.5 * t + 0.7 * v),
        3 * torch.cos(0.2 + 0.4 * b + 0.6 * t + 0.9 * v),
        2.5 * torch.sin(0.1 + 0.35 * b + 0.45 * t + 1.1 * v),
    )


TOY_MASK = torch.tensor([[0, 1, 1, 1, 1], [0, 0, 1, 1, 0]], dtype=torch.bool)
