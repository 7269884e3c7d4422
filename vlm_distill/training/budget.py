"""How long a stage lasts and what follows from how much of it is used: the learning rate.

Time is the used fraction of a budget in optimiser steps or in trained tokens, because the number of steps is
not known beforehand where responses are sampled during training.
"""

import math
from dataclasses import dataclass

from vlm_distill.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Optimiser steps, or response tokens of the student over all processes; exactly one is given."""

    steps: int | None = None
    tokens: int | None = None

    @classmethod
    def of(cls, config: TrainConfig, *, num_items: int) -> "Budget":
        if config.tokens is not None:
            return cls(tokens=config.tokens)
        if config.steps is not None:
            return cls(steps=config.steps)
        assert config.epochs is not None
        return cls(steps=max(1, math.ceil(config.epochs * num_items / config.batch_size)))

    def fraction(self, *, step: int, tokens: int) -> float:
        """Return the share that is used after `step` optimiser steps and `tokens` trained tokens."""
        if self.tokens is not None:
            return tokens / self.tokens
        assert self.steps is not None
        return step / self.steps

    def __str__(self) -> str:
        return f"{self.steps:,} steps" if self.tokens is None else f"{self.tokens:,} response tokens"


def learning_rate(config: TrainConfig, *, before: float, after: float) -> float:
    """Return the rate of a step that uses the budget from `before` to `after`, both fractions.

    Linear warm-up over `warmup_ratio` of the budget, then cosine to 0, or constant.
    """
    if after < config.warmup_ratio:
        return config.learning_rate * after / config.warmup_ratio
    if config.schedule == "constant":
        return config.learning_rate
    progress = max(0.0, before - config.warmup_ratio) / (1 - config.warmup_ratio)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
