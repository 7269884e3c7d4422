"""The divergences as functions of logits; formulas, limits and sources stand in divergences.py."""

from vlm_distill.losses.divergences import (
    AdaptiveKL,
    AlphaBeta,
    CrossEntropy,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    TotalVariation,
)
from vlm_distill.losses.log_space import Logits, Skew, Values


def forward_kl(student_logits: Logits, teacher_logits: Logits) -> Values:
    """Return KL(p || q)."""
    return ForwardKL()(student_logits, teacher_logits)


def reverse_kl(student_logits: Logits, teacher_logits: Logits) -> Values:
    """Return KL(q || p)."""
    return ReverseKL()(student_logits, teacher_logits)


def cross_entropy(student_logits: Logits, teacher_logits: Logits) -> Values:
    """Return -sum p log q: KL(p || q) plus the entropy of p, inf where p has mass that q lacks."""
    return CrossEntropy()(student_logits, teacher_logits)


def skew_kl(student_logits: Logits, teacher_logits: Logits, *, alpha: Skew) -> Values:
    """Return KL(p || alpha p + (1 - alpha) q), with one alpha or one per row."""
    return SkewKL(alpha=alpha)(student_logits, teacher_logits)


def skew_reverse_kl(
    student_logits: Logits, teacher_logits: Logits, *, alpha: Skew, detach_mixture: bool = False
) -> Values:
    """Return KL(q || (1 - alpha) p + alpha q), optionally with q in the mixture as a constant."""
    return SkewReverseKL(alpha=alpha, detach_mixture=detach_mixture)(student_logits, teacher_logits)


def jensen_shannon(student_logits: Logits, teacher_logits: Logits, *, beta: Skew) -> Values:
    """Return beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, also with one per row."""
    return JensenShannon(beta=beta)(student_logits, teacher_logits)


def total_variation(student_logits: Logits, teacher_logits: Logits) -> Values:
    """Return half the L1 distance, in [0, 1]."""
    return TotalVariation()(student_logits, teacher_logits)


def adaptive_kl(student_logits: Logits, teacher_logits: Logits, *, head_mass: float) -> Values:
    """Return forward and reverse KL weighted by the gap on head and tail of p."""
    return AdaptiveKL(head_mass=head_mass)(student_logits, teacher_logits)


def alpha_beta(student_logits: Logits, teacher_logits: Logits, *, alpha: float, beta: float) -> Values:
    """Return the alpha-beta divergence for alpha, beta >= 0, limits at zero included."""
    return AlphaBeta(alpha=alpha, beta=beta)(student_logits, teacher_logits)
