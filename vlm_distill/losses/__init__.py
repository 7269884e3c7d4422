"""The loss core: divergences, targets, schedules and objectives on hidden states and labels."""

from vlm_distill.losses.compared_ids import ComparedIds, IdList, IdRange
from vlm_distill.losses.compositions import (
    GKD,
    KD,
    SFT,
    TAID,
    DistiLLM,
    ImitKD,
    KnownObjective,
    ObjectiveConfig,
    OnPolicyKD,
    SeqKD,
)
from vlm_distill.losses.distillm2 import DistiLLM2
from vlm_distill.losses.divergences import (
    AdaptiveKL,
    AlphaBeta,
    CrossEntropy,
    Divergence,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    SymmetricKL,
    TotalVariation,
)
from vlm_distill.losses.functional import (
    adaptive_kl,
    alpha_beta,
    cross_entropy,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    total_variation,
)
from vlm_distill.losses.label_divergences import NegativeLogLikelihood, SampledReverseKL
from vlm_distill.losses.linear import linear_divergence
from vlm_distill.losses.objective import Objective, ObjectiveLoss
from vlm_distill.losses.pairs import PairTerm
from vlm_distill.losses.preference_methods import DPO, SimPER
from vlm_distill.losses.preferences import DirectPreference, InversePerplexity, Preference, Side
from vlm_distill.losses.response_sources import AdaptiveOffPolicy, OnPolicy, ResponseSource, Stored
from vlm_distill.losses.rows import Result, RowGroup, Rows
from vlm_distill.losses.schedules import (
    AdaptiveInterpolation,
    Clock,
    Constant,
    Linear,
    Schedule,
    SkewCurriculum,
)
from vlm_distill.losses.support import explain_non_finite
from vlm_distill.losses.targets import Interpolated, OneHot, Target, Teacher
from vlm_distill.losses.terms import Reduction, Term

__all__ = [
    "DPO",
    "GKD",
    "KD",
    "SFT",
    "TAID",
    "AdaptiveInterpolation",
    "AdaptiveKL",
    "AdaptiveOffPolicy",
    "AlphaBeta",
    "Clock",
    "ComparedIds",
    "Constant",
    "CrossEntropy",
    "DirectPreference",
    "DistiLLM",
    "DistiLLM2",
    "Divergence",
    "ForwardKL",
    "IdList",
    "IdRange",
    "ImitKD",
    "Interpolated",
    "InversePerplexity",
    "JensenShannon",
    "KnownObjective",
    "Linear",
    "NegativeLogLikelihood",
    "Objective",
    "ObjectiveConfig",
    "ObjectiveLoss",
    "OnPolicy",
    "OnPolicyKD",
    "OneHot",
    "PairTerm",
    "Preference",
    "Reduction",
    "ResponseSource",
    "Result",
    "ReverseKL",
    "RowGroup",
    "Rows",
    "SampledReverseKL",
    "Schedule",
    "SeqKD",
    "Side",
    "SimPER",
    "SkewCurriculum",
    "SkewKL",
    "SkewReverseKL",
    "Stored",
    "SymmetricKL",
    "Target",
    "Teacher",
    "Term",
    "TotalVariation",
    "adaptive_kl",
    "alpha_beta",
    "cross_entropy",
    "explain_non_finite",
    "forward_kl",
    "jensen_shannon",
    "linear_divergence",
    "reverse_kl",
    "skew_kl",
    "skew_reverse_kl",
    "total_variation",
]
