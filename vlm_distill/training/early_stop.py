"""Early stopping on the KL to the teacher on held-out prompts."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(kw_only=True, slots=True)
class EarlyStop:
    """Counts evaluations since the lowest value. `patience` None never stops."""

    patience: int | None
    best: float = math.inf
    best_step: int = 0
    num_since: int = 0

    @property
    def stops(self) -> bool:
        return self.patience is not None and self.num_since >= self.patience

    def observe(self, value: float, *, step: int) -> bool:
        """Take in the value after `step` optimiser steps; return whether it is the lowest so far."""
        if value < self.best:
            self.best, self.best_step, self.num_since = value, step, 0
            return True
        self.num_since += 1
        return False

    def state_dict(self) -> dict[str, Any]:
        # JSON has no infinity.
        best = None if math.isinf(self.best) else self.best
        return {"best": best, "best_step": self.best_step, "num_since": self.num_since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = math.inf if state["best"] is None else state["best"]
        self.best_step, self.num_since = state["best_step"], state["num_since"]
