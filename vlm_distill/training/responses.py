"""Where the responses of an optimiser step come from: the store, the live student, or a replay buffer.

The choice is the objective's (losses/response_sources.py); what it leads to is here. All draws are functions
of the step, and the buffer is part of the checkpoint, so a resumed stage sees the same responses.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vlm_distill.batches import TrainItem
from vlm_distill.records import Response
from vlm_distill.training.step import Stage

Gather = Callable[[list[Any]], list[Any]]
"""Concatenates the lists of all processes, the same on each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepItems:
    """This process's items of a step; `is_on_policy` where the student wrote them during the stage."""

    items: list[TrainItem]
    is_on_policy: bool


@dataclass(kw_only=True, slots=True)
class Responses:
    """Items of each step for one process of `num_processes`; `buffer` holds (item number, token ids)."""

    stage: Stage
    process_index: int
    num_processes: int
    gather: Gather
    buffer: deque[tuple[int, tuple[int, ...]]] = field(init=False)

    def __post_init__(self) -> None:
        self.buffer = deque(maxlen=self.stage.objective.source.capacity)

    def items(self, step: int, indices: Sequence[int]) -> StepItems:
        """Return the items of `step`, whose prompts are `indices`, the same on all processes."""
        objective = self.stage.objective
        generator = torch.Generator().manual_seed(self.stage.seed * 1_000_003 + step)
        uniform = float(torch.rand((), generator=generator))
        choice = objective.source.draw(uniform, objective.clock, buffered=len(self.buffer))
        if choice == "off_policy":
            stored = [self.stage.items[index] for index in self._own(indices)]
            return StepItems(items=stored, is_on_policy=False)
        if choice == "on_policy":
            return StepItems(items=self._sample(step, self._own(indices)), is_on_policy=True)
        drawn = torch.randperm(len(self.buffer), generator=generator)[: len(indices)].tolist()
        replayed = [self._item(*self.buffer[position]) for position in self._own(drawn)]
        return StepItems(items=replayed, is_on_policy=True)

    def _own(self, indices: Sequence[int]) -> Sequence[int]:
        return indices[self.process_index :: self.num_processes]

    def _sample(self, step: int, indices: Sequence[int]) -> list[TrainItem]:
        assert self.stage.sample is not None
        # Every step draws its own random numbers, every row within it too (generation/sampling.py).
        seed = (self.stage.seed * 1_000_003 + step) % 2**31
        drawn = self.stage.sample([self.stage.items[index].example for index in indices], seed)
        by_id = {response.example_id: response for response in drawn}
        pairs = [
            (index, by_id[self.stage.items[index].example.id].token_ids)
            for index in indices
            if self.stage.items[index].example.id in by_id
        ]
        if self.stage.objective.source.capacity:
            # Sorted, so that the buffer does not depend on how many processes sampled.
            self.buffer.extend((index, tuple(ids)) for index, ids in sorted(self.gather(pairs)))
        return [self._item(index, ids) for index, ids in pairs]

    def _item(self, index: int, token_ids: tuple[int, ...]) -> TrainItem:
        example = self.stage.items[index].example
        response = Response(
            id=f"{example.id}/live",
            example_id=example.id,
            author="student",
            round=self.stage.round,
            sample_index=0,
            text="",
            token_ids=token_ids,
            finish="stop",
            model_fingerprint="live",
        )
        return TrainItem(example=example, responses=(response,))

    def state_dict(self) -> list[Any]:
        """Return the buffer as JSON values."""
        return [[index, list(ids)] for index, ids in self.buffer]

    def load_state_dict(self, state: Sequence[Any]) -> None:
        self.buffer.clear()
        self.buffer.extend((index, tuple(ids)) for index, ids in state)
