"""Some rows of both models as a divergence reads them, and what linear.py asks of a teacher and a divergence.

A teacher may be known whole, as its most probable tokens with the rest, or at the labels alone
(teacher_rows.py). It is read in three steps: all rows, a chunk of them, a block of a chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm_distill.losses.log_space import Gradient, LogProbs, Values
from vlm_distill.losses.targets import RowTarget

Selection: TypeAlias = slice | Int[Tensor, " selected"]
Comparison: TypeAlias = Callable[[LogProbs, LogProbs], tuple[Values, Gradient]]
"""Values and gradients for the student's logits, given log-probabilities of student and target."""


@runtime_checkable
class TeacherBlock(Protocol):
    """What is known of a teacher in some rows."""

    def __getitem__(self, rows: Selection) -> "TeacherBlock": ...

    def labels(self, columns: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        """Return the log-probabilities of the labels, which stand in `columns`."""

    def compare(
        self, comparison: Comparison, log_q: Float[Tensor, "row column"], target: RowTarget
    ) -> tuple[Float[Tensor, " row"], Float[Tensor, "row column"]]:
        """Return the comparison of student and target over what is known, with gradients for all columns."""


@runtime_checkable
class TeacherChunk(Protocol):
    """What is known of a teacher in a chunk of rows; rows count from the start of the chunk."""

    def block(self, rows: slice, device: torch.device | None = None) -> TeacherBlock:
        """Return what is known of some rows, on `device` if given."""

    def logits(self) -> Float[Tensor, "chunk column"] | None:
        """Return all logits, None for a teacher that is known in part."""


@runtime_checkable
class TeacherRows(Protocol):
    """What is known of a teacher at every row of a student."""

    def in_precision(self) -> "TeacherRows":
        """Return the rows with an output layer in the precision of products."""

    def chunk(self, chunk: slice) -> TeacherChunk:
        """Return a chunk of the rows; what depends on the output layer is computed here, once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowBlock:
    """Rows of both models side by side, without a gradient path.

    `columns` are those of the labels, negative for a label that is not compared; the label log-probabilities
    are gathered once for all groups of a block.
    """

    log_q: Float[Tensor, "row column"]
    columns: Int[Tensor, " row"]
    student_labels: Float[Tensor, " row"]
    teacher: TeacherBlock | None
    teacher_labels: Float[Tensor, " row"] | None

    def select(self, rows: Selection) -> "RowBlock":
        return RowBlock(
            log_q=self.log_q[rows],
            columns=self.columns[rows],
            student_labels=self.student_labels[rows],
            teacher=None if self.teacher is None else self.teacher[rows],
            teacher_labels=None if self.teacher_labels is None else self.teacher_labels[rows],
        )


@runtime_checkable
class RowDivergence(Protocol):
    """What linear.py asks of a divergence, whether it reads distributions or labels alone."""

    __slots__ = ()
    needs_teacher: ClassVar[bool] = True
    compares_distributions: ClassVar[bool] = True

    def of_rows(self, rows: RowBlock, target: RowTarget) -> tuple[Values, Gradient]:
        """Return the values in nats and their gradients for the student's logits, both new tensors."""

    def at(self, parameter: Values) -> "RowDivergence":
        """Return the divergence with one value of its parameter per row."""
        raise AssertionError(f"{type(self).__name__} has no parameter that differs per row")
