"""What one training stage works on, and one micro-batch from prompts to loss as a module."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.alignment.alignment import Alignment
from vlm_distill.batches import TrainItem
from vlm_distill.data.images import ImageLoader
from vlm_distill.forward import response_hidden, single_forward_hidden
from vlm_distill.losses import ComparedIds, Objective, ObjectiveLoss, Rows
from vlm_distill.losses.row_blocks import TeacherRows
from vlm_distill.records import Example, Response
from vlm_distill.teacher_cache.store import CacheReader
from vlm_distill.training.items import TrainBatch

HELD_OUT_KL = "held_out_kl"

Sample = Callable[[Sequence[Example], int], list[Response]]
"""Draws one response of the live student per example with a seed; failed ones are missing."""
Evaluate = Callable[[], dict[str, float]]
"""Measures the live student, `HELD_OUT_KL` among the results; the same on every process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """What one training stage works on.

    `key` names inputs and config. `sample` and `evaluate` work on `student` as it is at that moment.
    `reference_log_probs` are those of the stored responses under the student before the stage, by response
    id, where the objective needs them. With a `cache` the teacher needs no weights beside its output layer.
    `trust_remote_code` is how the student was loaded, in case it is loaded again.
    """

    student: LoadedModel
    teacher: LoadedModel | None
    alignment: Alignment
    objective: Objective
    items: Sequence[TrainItem]
    load_images: ImageLoader
    folder: Path
    key: str
    label: str
    seed: int
    round: int = 1
    num_rounds: int = 1
    sample: Sample | None = None
    evaluate: Evaluate | None = None
    reference_log_probs: Mapping[str, float] = field(default_factory=dict)
    cache: CacheReader | None = None
    trust_remote_code: bool = False


class StepModule(nn.Module):
    """One micro-batch from prompts to loss.

    All in one forward, so that wrappers (DDP, FSDP) see body and head together. With sharded weights every
    forward of a layer waits for the other processes, so `is_sharded` makes their number independent of the
    batch.
    """

    is_sharded = False

    def __init__(self, stage: Stage, byte_budget: int) -> None:
        super().__init__()
        self.student = stage.student.model
        # accelerate's FSDP2 shards the classes that a module names here; families also name some they lack.
        present = {type(part).__name__ for part in self.student.modules()}
        named = getattr(self.student, "_no_split_modules", None) or ()
        self._no_split_modules = sorted(present & set(named))
        self._stage = stage
        self._byte_budget = byte_budget

    def forward(self, batch: TrainBatch, denominators: Tensor) -> ObjectiveLoss:
        student, teacher = model_rows(self._stage, batch, is_sharded=self.is_sharded)
        found = self._stage.objective.loss(student, teacher, batch.responses, denominators, self._byte_budget)
        return found if found.loss.requires_grad else replace(found, loss=found.loss + self._nothing())

    def _nothing(self) -> Float[Tensor, ""]:
        """Return 0 with a gradient path, for prompts without images where only the language is frozen.

        Data parallel processes wait for each other's gradients all the same.
        """
        learning = next(one for one in self.student.parameters() if one.requires_grad)
        return 0.0 * learning.sum()


def model_rows(
    stage: Stage, batch: TrainBatch, *, is_sharded: bool = False
) -> tuple[Rows, TeacherRows | None]:
    """Return what the loss core reads of both models: hidden states of the response tokens and heads.

    A student that `is_sharded` runs once whatever the batch.
    """
    student_hidden = single_forward_hidden if is_sharded else response_hidden
    teacher: TeacherRows | None = None
    if stage.teacher is not None and stage.cache is not None and batch.cached is not None:
        head = stage.teacher.head
        teacher = stage.cache.tier.rows(batch.cached, head, stage.alignment.teacher)
    elif stage.teacher is not None and batch.teacher_prompts is not None:
        with torch.no_grad():
            responses = stage.alignment.for_teacher(batch.responses)
            hidden = response_hidden(stage.teacher, batch.teacher_prompts, responses)
            teacher = _rows(stage.teacher, hidden, stage.alignment.teacher)
    hidden = student_hidden(stage.student, batch.student_prompts, batch.responses)
    return _rows(stage.student, hidden, stage.alignment.student), teacher


def _rows(loaded: LoadedModel, hidden: Float[Tensor, "row width"], compared: ComparedIds) -> Rows:
    return Rows(hidden=hidden, head=loaded.head, compared=compared)
