"""DistiLLM-2 as a composition of terms: two presets and two curricula, each of which can be switched off."""

import logging
from dataclasses import dataclass
from typing import Literal, TypeAlias

from vlm_distill.errors import ConfigError
from vlm_distill.losses.divergences import SkewKL, SkewReverseKL
from vlm_distill.losses.objective import Objective
from vlm_distill.losses.schedules import Linear, SkewCurriculum
from vlm_distill.losses.terms import Reduction, Term

logger = logging.getLogger(__name__)

Preset: TypeAlias = Literal["paper", "released"]
BetaCurriculum: TypeAlias = Literal["half_round", "printed", "off"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DistiLLM2:
    """Skew KL on the teacher's responses, skew reverse KL on the student's own. arXiv:2503.07067.

    Preset `paper` is the method as the text describes it: weights 1 - b and b, both curricula, the full
    gradient of skew reverse KL. Preset `released` is what the public code trains: weights 1 and 1, fixed
    alpha, the student inside the mixture as a constant. A curriculum of None is what the preset says.

    `beta_curriculum`: "half_round" moves b from 0.5 to 0.75 over the first half of every round; "printed" is
    the schedule in the paper's equation, where b reaches 1, and so skew KL vanishes, at two thirds of round
    1; "off" keeps 0.5.
    """

    kind: Literal["distillm2"] = "distillm2"
    preset: Preset = "paper"
    alpha: float = 0.1
    alpha_curriculum: bool | None = None
    beta_curriculum: BetaCurriculum | None = None
    reduction: Reduction = "sequence"

    def __post_init__(self) -> None:
        low, high = SkewCurriculum.LOW, SkewCurriculum.HIGH
        if self._adapts_alpha and not low <= self.alpha <= high:
            expected = f"expected {low} to {high} with the alpha curriculum"
            raise ConfigError(f"alpha of distillm2: {expected}, got {self.alpha}")
        if self.preset == "released" and self.beta_curriculum not in (None, "off"):
            raise ConfigError(
                "beta_curriculum of distillm2: preset released has fixed weights 1 and 1; use preset paper"
            )
        self._divergences()

    @property
    def _adapts_alpha(self) -> bool:
        return self.preset == "paper" if self.alpha_curriculum is None else self.alpha_curriculum

    def _divergences(self) -> tuple[SkewKL, SkewReverseKL]:
        detach = self.preset == "released"
        return SkewKL(alpha=self.alpha), SkewReverseKL(alpha=self.alpha, detach_mixture=detach)

    def _weights(self) -> tuple[float | Linear, float | Linear]:
        if self.preset == "released":
            return 1.0, 1.0
        match self.beta_curriculum:
            case "off":
                return 0.5, 0.5
            case "printed":
                logger.warning(
                    "beta_curriculum printed: b reaches 1 at two thirds of round 1 and stays there: the "
                    "teacher's responses no longer count; half_round is the schedule of the text"
                )
                return (
                    Linear(start=0.5, end=0.0, fraction=2 / 3, restart=False),
                    Linear(start=0.5, end=1.0, fraction=2 / 3, restart=False),
                )
            case _:
                return Linear(start=0.5, end=0.25, fraction=0.5), Linear(start=0.5, end=0.75, fraction=0.5)

    def build(self) -> Objective:
        divergences, weights = self._divergences(), self._weights()
        adapts = self._adapts_alpha
        return Objective(
            [
                Term(
                    name="skl",
                    title="skew KL",
                    divergence=divergences[0],
                    author="teacher",
                    weight=weights[0],
                    reduction=self.reduction,
                    skew=SkewCurriculum("teacher", initial=self.alpha) if adapts else None,
                ),
                Term(
                    name="srkl",
                    title="skew reverse KL",
                    divergence=divergences[1],
                    author="student",
                    weight=weights[1],
                    reduction=self.reduction,
                    skew=SkewCurriculum("student", initial=self.alpha) if adapts else None,
                    log_weight_as=None if self.preset == "released" else "beta",
                ),
            ]
        )
