"""A divergence between two distributions; autograd follows `values`."""

from dataclasses import dataclass
from typing import Literal

from vlm_distill.errors import ConfigError
from vlm_distill.losses.divergences import DistributionDivergence
from vlm_distill.losses.log_space import LogProbs, Values


@dataclass(frozen=True, kw_only=True, slots=True)
class Hellinger(DistributionDivergence):
    """`scale` times the squared Hellinger distance, 1 - sum sqrt(p q)."""

    kind: Literal["hellinger"] = "hellinger"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ConfigError(f"scale of hellinger: expected a positive number, got {self.scale}")

    def values(self, log_q: LogProbs, log_p: LogProbs) -> Values:
        return self.scale * (1 - ((log_q + log_p) / 2).exp().sum(dim=1))
