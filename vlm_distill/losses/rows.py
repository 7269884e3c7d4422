"""What a linear divergence is computed on: rows of hidden states with a head, and groups of rows.

A row is one response token, in the order of `ResponseBatch.labels`. The arithmetic over chunks of rows is in
linear.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm_distill.batches import Head
from vlm_distill.losses.compared_ids import OUTSIDE, ComparedIds, IdRange
from vlm_distill.losses.products import float32_product, precision_of
from vlm_distill.losses.row_blocks import Comparison, RowDivergence, Selection
from vlm_distill.losses.targets import RowTarget, Teacher

BYTES_PER_LOGIT = 12
"""Memory of a chunk per row and column: float32 logits of both models, and a third of all for the blocks.

The gradient replaces the student's logits.
"""
BYTES_PER_BLOCK_LOGIT = 32
"""What a divergence in closed form makes of a block per row and column: log-probabilities, probabilities,
their products and the gradient. Twice as much where autograd is at work.
"""
CPU_BLOCK_LOGITS = 2**18
"""Logits of a block per thread: about what the caches of a core hold, however large the budget."""
BLOCK_LOGITS = 2**22
"""Logits of a block on other devices: a kernel over that many takes longer than its launch."""

RowFunction: TypeAlias = Callable[
    [Float[Tensor, " group"], Float[Tensor, " group"] | None], Float[Tensor, " group"]
]
"""A number per row from the detached label log-probabilities of the group's rows: student, teacher if any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The final hidden states of one model at the positions that predict the response tokens.

    The output layer may be on another device than the hidden states, where a model is spread over several.
    `compared` restricts the output layer before the softmax, `IdRange` to a range of ids and `IdList` to a
    list of them; without it all are compared. The c-th column of the student and the c-th column of the
    teacher must be the same token.
    """

    hidden: Float[Tensor, "row width"]
    head: Head
    compared: ComparedIds = field(default_factory=IdRange)

    @property
    def num_columns(self) -> int:
        return self.compared.size(len(self.head.weight))

    def in_precision(self) -> "Rows":
        """Return the rows with the output layer in the precision of products."""
        weight = self.head.weight
        return replace(self, head=replace(self.head, weight=weight.to(precision_of(weight))))

    def chunk(self, chunk: slice) -> "WholeChunk":
        return WholeChunk(rows=self, projected=self.project(chunk))

    def project(self, chunk: slice) -> Float[Tensor, "chunk projected"]:
        """Return hidden @ weight.T + bias in float32 at least, without gradient.

        A list of ids narrows it later, in `logits`.
        """
        projected = float32_product(self.hidden[chunk], self.compared.part(self.head.weight))
        return projected if self.head.bias is None else projected.add_(self.compared.part(self.head.bias))

    def logits(self, projected: Float[Tensor, "chunk projected"]) -> Float[Tensor, "chunk column"]:
        """Return the logits of the compared ids."""
        return self.head.scaled(self.compared.select(projected))

    def projected_gradient(
        self, gradient: Float[Tensor, "chunk column"], projected: Float[Tensor, "chunk projected"]
    ) -> Float[Tensor, "chunk projected"]:
        """Return the gradient for the projection, given that for the logits, which it may overwrite."""
        if self.head.soft_cap is not None:
            # d cap tanh(x / cap) / dx = 1 - tanh^2
            ratio = self.logits(projected).div_(self.head.soft_cap)
            gradient.addcmul_(gradient, ratio.square_(), value=-1)
        if self.head.scale != 1.0:
            gradient.mul_(self.head.scale)
        return self.compared.spread(gradient, projected)

    def columns(self, labels: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
        """Return where token ids stand among the compared ones, OUTSIDE for those that are not."""
        return self.compared.columns(labels, len(self.head.weight))


@dataclass(frozen=True, kw_only=True, slots=True)
class WholeChunk:
    """A chunk of a model's rows, through the output layer once; the softmax is made block by block."""

    rows: Rows
    projected: Float[Tensor, "chunk projected"]

    def logits(self) -> Float[Tensor, "chunk column"]:
        return self.rows.logits(self.projected)

    def block(self, rows: slice, device: torch.device | None = None) -> "WholeBlock":
        # [block, projected], then [block, column]: the ids are narrowed before the softmax.
        projected = self.projected[rows].to(device)
        return WholeBlock(log_probs=self.rows.logits(projected).log_softmax(dim=1))


@dataclass(frozen=True, kw_only=True, slots=True)
class WholeBlock:
    """All log-probabilities of one model in some rows."""

    log_probs: Float[Tensor, "row column"]

    def __getitem__(self, rows: Selection) -> "WholeBlock":
        return WholeBlock(log_probs=self.log_probs[rows])

    def labels(self, columns: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        return label_log_probs(self.log_probs, columns.to(self.log_probs.device)).to(columns.device)

    def compare(
        self, comparison: Comparison, log_q: Float[Tensor, "row column"], target: RowTarget
    ) -> tuple[Float[Tensor, " row"], Float[Tensor, "row column"]]:
        return comparison(log_q, target.log_probs(log_q, self.log_probs))


@dataclass(frozen=True, kw_only=True, slots=True)
class RowGroup:
    """Rows that share a divergence. A row may be in several groups.

    `rows` are indices in ascending order, without repetition. `weight` carries every factor, the denominator
    included. `parameter` is one number per row in place of the divergence's own, as the alpha of SkewKL.
    Either may be a function of label log-probabilities instead. `target` is that of one step.
    `gradient_only` keeps the group out of the value of the loss.
    """

    divergence: RowDivergence
    rows: Int[Tensor, " group"]
    weight: Float[Tensor, " group"] | RowFunction
    parameter: Float[Tensor, " group"] | RowFunction | None = None
    target: RowTarget = field(default_factory=Teacher)
    gradient_only: bool = False

    @property
    def is_resolved(self) -> bool:
        return not (callable(self.weight) or callable(self.parameter))

    def divergence_of(self, member: slice) -> RowDivergence:
        """Return the divergence of some of the group's rows, with their own parameters if they have any."""
        if self.parameter is None:
            return self.divergence
        assert isinstance(self.parameter, Tensor)
        return self.divergence.at(self.parameter[member])

    def resolve(
        self, student_log_probs: Float[Tensor, " row"], teacher_log_probs: Float[Tensor, " row"] | None
    ) -> "RowGroup":
        """Return the group with functions replaced by tensors, given label log-probabilities of all rows."""
        student = student_log_probs[self.rows]
        teacher = None if teacher_log_probs is None else teacher_log_probs[self.rows]
        return replace(
            self,
            weight=self.weight(student, teacher) if callable(self.weight) else self.weight,
            parameter=self.parameter(student, teacher) if callable(self.parameter) else self.parameter,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The loss and, detached, what it was made of.

    `loss` is the sum over groups and their rows of weight times value; groups that are `gradient_only` are in
    its gradient alone. `row_values` holds the unweighted values in nats, one tensor per group in the order of
    its rows, because a row may be in several groups. The log-probabilities are those of the labels, for every
    row, -inf for a label that is not compared; without teacher rows the teacher's are None.
    """

    loss: Float[Tensor, ""]
    row_values: tuple[Float[Tensor, " _"], ...]
    student_label_log_probs: Float[Tensor, " row"]
    teacher_label_log_probs: Float[Tensor, " row"] | None


def row_chunks(rows: Rows, byte_budget: int) -> list[slice]:
    """Return consecutive slices over the rows, each of at least one row, whose logits fit the budget."""
    size = max(1, byte_budget // (BYTES_PER_LOGIT * rows.num_columns))
    return _cut(slice(0, len(rows.hidden)), size)


def row_blocks(rows: Rows, chunk: slice, byte_budget: int) -> list[slice]:
    """Return consecutive slices over the chunk's rows, small enough for what a divergence makes of them.

    They take a third of the budget at most, but a block has at least one row.
    """
    device = rows.head.weight.device
    limit = CPU_BLOCK_LOGITS * torch.get_num_threads() if device.type == "cpu" else BLOCK_LOGITS
    limit = min(limit, byte_budget // (3 * BYTES_PER_BLOCK_LOGIT))
    return _cut(chunk, max(1, limit // rows.num_columns))


def _cut(rows: slice, size: int) -> list[slice]:
    return [slice(start, min(start + size, rows.stop)) for start in range(rows.start, rows.stop, size)]


def label_log_probs(
    log_probs: Float[Tensor, "block column"], columns: Int[Tensor, " block"]
) -> Float[Tensor, " block"]:
    """Return the log-probability of each row's label, -inf for a label OUTSIDE."""
    gathered = log_probs.gather(1, columns.clamp_min(0)[:, None])[:, 0]
    return gathered.masked_fill(columns == OUTSIDE, -torch.inf)


def group_members(groups: Sequence[RowGroup], blocks: Sequence[slice]) -> list[list[slice]]:
    """Return, per block and group, which of the group's rows lie in the block.

    One transfer to the host for all of them: boolean selection would wait for the device once per block and
    group.
    """
    if not groups or not blocks:
        return [[] for _ in blocks]
    edges = torch.tensor([block.start for block in blocks] + [blocks[-1].stop], device=groups[0].rows.device)
    # [group, edge]: how many of a group's rows come before each edge.
    positions = torch.stack([torch.searchsorted(group.rows, edges) for group in groups])
    disordered = torch.stack([(group.rows.diff() <= 0).sum() for group in groups])
    # By edge, one number per group; last whether the group is out of order.
    *bounds, disorder = torch.cat([positions, disordered[:, None]], dim=1).T.tolist()
    assert not any(disorder), "rows of a group must ascend without repetition"
    assert bounds[-1] == [len(group.rows) for group in groups], "a group has a row that does not exist"
    return [
        [slice(start, stop) for start, stop in zip(starts, stops, strict=True)]
        for starts, stops in pairwise(bounds)
    ]
