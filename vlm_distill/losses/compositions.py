"""Named methods as compositions of terms: config records whose `build` returns an Objective.

A method that reads stored responses beside on-policy ones, or instead of them, takes those of the teacher or
the references. Methods that prefer one response to another are in preference_methods.py, DistiLLM-2 in
distillm2.py.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol, TypeAlias, get_args, runtime_checkable

from pydantic import Field

from vlm_distill.config import Kinds
from vlm_distill.losses.distillm2 import DistiLLM2
from vlm_distill.losses.divergences import (
    CrossEntropy,
    Divergence,
    DivergenceConfig,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
)
from vlm_distill.losses.label_divergences import NegativeLogLikelihood, SampledReverseKL
from vlm_distill.losses.objective import Objective
from vlm_distill.losses.preference_methods import DPO, SimPER
from vlm_distill.losses.response_sources import AdaptiveOffPolicy, OnPolicy
from vlm_distill.losses.schedules import AdaptiveInterpolation
from vlm_distill.losses.targets import Interpolated, OneHot
from vlm_distill.losses.terms import Reduction, Term

StoredAuthor: TypeAlias = Literal["teacher", "reference"]
AnyDivergence: TypeAlias = Annotated[
    DivergenceConfig,
    Kinds("vlm_distill.divergences", get_args(Divergence)),
    # The kind of a default may be taken by another package.
    Field(validate_default=True),
]


@runtime_checkable
class ObjectiveConfig(Protocol):
    """What a run asks of a method: a frozen record, whose fields are its settings."""

    @property
    def kind(self) -> str: ...

    def build(self) -> Objective:
        """Return the objective anew, its curricula at their start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SFT:
    """Negative log-likelihood of the references."""

    kind: Literal["sft"] = "sft"
    reduction: Reduction = "token"

    def build(self) -> Objective:
        return _likelihood("reference", self.reduction)


@dataclass(frozen=True, kw_only=True, slots=True)
class SeqKD:
    """Negative log-likelihood of the teacher's responses. Kim and Rush, arXiv:1606.07947."""

    kind: Literal["seqkd"] = "seqkd"
    reduction: Reduction = "token"

    def build(self) -> Objective:
        return _likelihood("teacher", self.reduction)


@dataclass(frozen=True, kw_only=True, slots=True)
class KD:
    """A divergence from the teacher on stored responses, by default forward KL. arXiv:1503.02531.

    With `adaptive_kl` it is AKL (arXiv:2404.02657), with `alpha_beta` ABKD (arXiv:2505.04560).
    """

    kind: Literal["kd"] = "kd"
    divergence: AnyDivergence = field(default_factory=ForwardKL)
    responses: StoredAuthor = "teacher"
    reduction: Reduction = "token"

    def build(self) -> Objective:
        divergence = self.divergence
        return Objective(
            [
                Term(
                    name=divergence.kind,
                    divergence=divergence,
                    author=self.responses,
                    reduction=self.reduction,
                )
            ]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TAID:
    """A divergence from a target that moves from the student to the teacher. arXiv:2501.16937.

    The default is what the public code trains and steers t by, the cross-entropy from the target; forward KL,
    which the paper prints, has the same gradient but is smaller by the target's entropy, and so its relative
    changes, which t follows, are larger. The mean of the chosen divergence is logged as `taid`, t as
    `taid_t`.
    """

    kind: Literal["taid"] = "taid"
    divergence: AnyDivergence = field(default_factory=CrossEntropy)
    responses: StoredAuthor = "teacher"
    t_start: float = 0.4
    t_end: float = 1.0
    alpha: float = 5e-4
    beta: float = 0.99
    reduction: Reduction = "token"

    def __post_init__(self) -> None:
        self._schedule()

    def _schedule(self) -> AdaptiveInterpolation:
        return AdaptiveInterpolation(
            "taid", t_start=self.t_start, t_end=self.t_end, alpha=self.alpha, beta=self.beta
        )

    def build(self) -> Objective:
        return Objective(
            [
                Term(
                    name="taid",
                    divergence=self.divergence,
                    target=Interpolated(t=self._schedule()),
                    author=self.responses,
                    reduction=self.reduction,
                )
            ]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ImitKD:
    """Forward KL on the learning student's responses. Lin et al., arXiv:2009.07253, without its data half."""

    kind: Literal["imitkd"] = "imitkd"
    reduction: Reduction = "token"

    def build(self) -> Objective:
        term = Term(name="forward_kl", divergence=ForwardKL(), author="student", reduction=self.reduction)
        return Objective([term], OnPolicy(share=1.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class GKD:
    """Jensen-Shannon, on-policy with probability `on_policy`, else on stored responses. arXiv:2306.13649.

    The mean is over each response and then over responses, as in the paper's Eq. 1.
    """

    kind: Literal["gkd"] = "gkd"
    beta: float = 0.5
    on_policy: float = 0.5
    responses: StoredAuthor = "teacher"
    reduction: Reduction = "sequence"

    def __post_init__(self) -> None:
        self.build()

    def build(self) -> Objective:
        source = OnPolicy(share=self.on_policy)
        authors: list[Literal["student", "teacher", "reference"]] = []
        if self.on_policy < 1:
            authors.append(self.responses)
        if self.on_policy > 0:
            authors.append("student")
        terms = [
            Term(
                name=f"jsd_{author}",
                divergence=JensenShannon(beta=self.beta),
                author=author,
                reduction=self.reduction,
            )
            for author in authors
        ]
        return Objective(terms, source)


@dataclass(frozen=True, kw_only=True, slots=True)
class DistiLLM:
    """A skew divergence on stored responses and, adaptively more, on the student's own. arXiv:2402.03898.

    Means are over tokens. The other fields are those of `AdaptiveOffPolicy`, which needs validation losses.
    """

    kind: Literal["distillm"] = "distillm"
    divergence: Literal["skl", "srkl"] = "srkl"
    alpha: float = 0.1
    responses: StoredAuthor = "teacher"
    capacity: int = 1000
    threshold_step: float = 0.1
    margin: float = 0.1

    def __post_init__(self) -> None:
        self.build()

    def build(self) -> Objective:
        divergence = SkewKL(alpha=self.alpha) if self.divergence == "skl" else SkewReverseKL(alpha=self.alpha)
        authors: tuple[Literal["student", "teacher", "reference"], ...] = (self.responses, "student")
        terms = [
            Term(name=f"{self.divergence}_{author}", divergence=divergence, author=author, reduction="token")
            for author in authors
        ]
        source = AdaptiveOffPolicy(
            capacity=self.capacity, threshold_step=self.threshold_step, margin=self.margin
        )
        return Objective(terms, source)


@dataclass(frozen=True, kw_only=True, slots=True)
class OnPolicyKD:
    """Reverse KL on the learning student's responses.

    `form` "full" sums over the vocabulary at every token, "sampled" is its policy gradient from the sampled
    tokens alone, an unbiased estimate where responses are sampled at temperature 1 without truncation.
    """

    kind: Literal["on_policy_kd"] = "on_policy_kd"
    form: Literal["full", "sampled"] = "full"
    reduction: Reduction = "token"

    def build(self) -> Objective:
        divergence = ReverseKL() if self.form == "full" else SampledReverseKL()
        term = Term(name="reverse_kl", divergence=divergence, author="student", reduction=self.reduction)
        return Objective([term], OnPolicy(share=1.0))


KnownObjective: TypeAlias = (
    DistiLLM2 | DistiLLM | GKD | KD | TAID | ImitKD | OnPolicyKD | SimPER | DPO | SeqKD | SFT
)


def _likelihood(author: StoredAuthor, reduction: Reduction) -> Objective:
    term = Term(
        name="nll",
        title="negative log-likelihood",
        divergence=NegativeLogLikelihood(),
        target=OneHot(),
        author=author,
        reduction=reduction,
    )
    return Objective([term])
