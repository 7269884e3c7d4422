"""The loss core: divergences, targets, schedules and objectives on hidden states and labels."""

from vlm_distill.losses.compositions import SFT, DistiLLM2, ObjectiveConfig, SeqKD
from vlm_distill.losses.divergences import (
    AdaptiveKL,
    AlphaBeta,
    Divergence,
    ForwardKL,
    JensenShannon,
    NegativeLogLikelihood,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    SymmetricKL,
    TotalVariation,
    adaptive_kl,
    alpha_beta,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    total_variation,
)
from vlm_distill.losses.linear import linear_divergence
from vlm_distill.losses.objective import Objective, ObjectiveLoss, Reduction, Term
from vlm_distill.losses.rows import Result, RowGroup, Rows
from vlm_distill.losses.schedules import Clock, Constant, Linear, Schedule, SkewCurriculum
from vlm_distill.losses.support import explain_non_finite
from vlm_distill.losses.targets import OneHot, Target, Teacher

__all__ = [
    "SFT",
    "AdaptiveKL",
    "AlphaBeta",
    "Clock",
    "Constant",
    "DistiLLM2",
    "Divergence",
    "ForwardKL",
    "JensenShannon",
    "Linear",
    "NegativeLogLikelihood",
    "Objective",
    "ObjectiveConfig",
    "ObjectiveLoss",
    "OneHot",
    "Reduction",
    "Result",
    "ReverseKL",
    "RowGroup",
    "Rows",
    "Schedule",
    "SeqKD",
    "SkewCurriculum",
    "SkewKL",
    "SkewReverseKL",
    "SymmetricKL",
    "Target",
    "Teacher",
    "Term",
    "TotalVariation",
    "adaptive_kl",
    "alpha_beta",
    "explain_non_finite",
    "forward_kl",
    "jensen_shannon",
    "linear_divergence",
    "reverse_kl",
    "skew_kl",
    "skew_reverse_kl",
    "total_variation",
]
