"""Functions of a pair of whole responses to one prompt, of which one is preferred: log-probabilities in.

How pairs are found, and how the gradient of these functions reaches the rows, is in pairs.py.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from vlm_distill.errors import ConfigError

PairValues: TypeAlias = Float[Tensor, " pair"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One response of every pair: its log-probabilities summed over tokens, in nats, and its length."""

    log_prob: Float[Tensor, " pair"]
    num_tokens: Int[Tensor, " pair"]
    reference_log_prob: Float[Tensor, " pair"] | None

    @property
    def mean_log_prob(self) -> PairValues:
        return self.log_prob / self.num_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class InversePerplexity:
    """-exp(mean log q(chosen)) + exp(mean log q(rejected)), in [-1, 1]. SimPER, arXiv:2502.00883."""

    kind: Literal["inverse_perplexity"] = "inverse_perplexity"
    reference: ClassVar[None] = None

    def __call__(self, chosen: Side, rejected: Side) -> PairValues:
        return rejected.mean_log_prob.exp() - chosen.mean_log_prob.exp()

    def metrics(self, chosen: Side, rejected: Side) -> dict[str, PairValues]:
        return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class DirectPreference:
    """-log sigmoid(margin), margin = beta (log q/ref(chosen) - log q/ref(rejected)). DPO, arXiv:2305.18290.

    `reference` is the student before the stage ("start") or the teacher, as in DPKD (arXiv:2406.19774).
    `length_normalised` takes mean log-probabilities instead of sums.
    """

    beta: float = 0.1
    reference: Literal["start", "teacher"] = "start"
    length_normalised: bool = False
    kind: Literal["direct_preference"] = "direct_preference"

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise ConfigError(f"beta of {self.kind}: expected beta > 0, got {self.beta}")

    def __call__(self, chosen: Side, rejected: Side) -> PairValues:
        return -logsigmoid(self.margin(chosen, rejected))

    def margin(self, chosen: Side, rejected: Side) -> PairValues:
        return self.beta * (self._log_ratio(chosen) - self._log_ratio(rejected))

    def metrics(self, chosen: Side, rejected: Side) -> dict[str, PairValues]:
        """Return the reward margin, and as accuracy whether it is positive."""
        margin = self.margin(chosen, rejected)
        return {"margin": margin, "accuracy": (margin > 0).to(margin.dtype)}

    def _log_ratio(self, side: Side) -> PairValues:
        assert side.reference_log_prob is not None
        log_ratio = side.log_prob - side.reference_log_prob
        return log_ratio / side.num_tokens if self.length_normalised else log_ratio


Preference: TypeAlias = InversePerplexity | DirectPreference
