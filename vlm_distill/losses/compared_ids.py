"""Which ids of an output layer a loss compares, and in which order: a range of ids, or a list of them.

The compared ids are the columns of the logits: column c is the c-th of them. A layer of which a range is
compared is cut before it is multiplied; of a layer of which a list is compared the product is.
"""

from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm_distill.files import hash_json

OUTSIDE = -1

IdsKey: TypeAlias = list[int | str]


@runtime_checkable
class ComparedIds(Protocol):
    """What rows of hidden states ask of the compared ids; `width` is the number of ids of the layer."""

    def size(self, width: int) -> int:
        """Return the number of columns."""

    def key(self, width: int) -> IdsKey:
        """Return what tells these ids from others, as JSON."""

    def part(self, layer: Float[Tensor, "vocab ..."]) -> Float[Tensor, "projected ..."]:
        """Return the view of a weight, a bias or a gradient of them that takes part in the product."""

    def select(self, projected: Float[Tensor, "row projected"]) -> Float[Tensor, "row column"]:
        """Return the columns of a product with `part`."""

    def spread(
        self, gradient: Float[Tensor, "row column"], projected: Float[Tensor, "row projected"]
    ) -> Float[Tensor, "row projected"]:
        """Return the gradient for the product, given that for its columns; ids left out have none."""

    def columns(self, token_ids: Int[Tensor, " row"], width: int) -> Int[Tensor, " row"]:
        """Return where token ids stand, OUTSIDE for those that are not compared."""

    def token_id(self, column: int) -> int:
        """Return the id that stands in a column."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IdRange:
    """The ids from `start` to before `stop`, to the last one of the layer without it; nothing is copied."""

    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        assert self.start >= 0, "ids are counted from the first one"

    def size(self, width: int) -> int:
        return len(self._range(width))

    def key(self, width: int) -> IdsKey:
        ids = self._range(width)
        return [ids.start, ids.stop]

    def part(self, layer: Float[Tensor, "vocab ..."]) -> Float[Tensor, "projected ..."]:
        return layer[self.start : self.stop]

    def select(self, projected: Float[Tensor, "row projected"]) -> Float[Tensor, "row column"]:
        return projected

    def spread(
        self, gradient: Float[Tensor, "row column"], projected: Float[Tensor, "row projected"]
    ) -> Float[Tensor, "row projected"]:
        return gradient

    def columns(self, token_ids: Int[Tensor, " row"], width: int) -> Int[Tensor, " row"]:
        columns = token_ids - self.start
        return columns.masked_fill((columns < 0) | (columns >= self.size(width)), OUTSIDE)

    def token_id(self, column: int) -> int:
        return self.start + column

    def _range(self, width: int) -> range:
        return range(width)[self.start : self.stop]


# Tensors have no truth value to be equal by: two lists are told apart by their keys.
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class IdList:
    """Some ids, each at most once, in the order in which they are compared."""

    ids: Int[Tensor, " column"]

    def __post_init__(self) -> None:
        assert len(self.ids.unique()) == len(self.ids), "an id stands in one column"
        assert bool((self.ids >= 0).all()), "ids are counted from the first one"

    def size(self, width: int) -> int:
        assert bool((self.ids < width).all()), f"all ids lie inside a layer of {width}"
        return len(self.ids)

    def key(self, width: int) -> IdsKey:
        return [len(self.ids), hash_json(self.ids.tolist())]

    def part(self, layer: Float[Tensor, "vocab ..."]) -> Float[Tensor, "projected ..."]:
        # A selection by ids would copy the whole layer.
        return layer

    def select(self, projected: Float[Tensor, "row projected"]) -> Float[Tensor, "row column"]:
        return projected.index_select(1, self.ids.to(projected.device))

    def spread(
        self, gradient: Float[Tensor, "row column"], projected: Float[Tensor, "row projected"]
    ) -> Float[Tensor, "row projected"]:
        # [row, column] back to [row, vocab]
        whole = torch.zeros_like(projected, dtype=gradient.dtype)
        return whole.index_add_(1, self.ids.to(whole.device), gradient)

    def columns(self, token_ids: Int[Tensor, " row"], width: int) -> Int[Tensor, " row"]:
        # [vocab], the inverse of the ids: where each one stands.
        table = torch.full((width,), OUTSIDE, dtype=token_ids.dtype, device=token_ids.device)
        ids = self.ids.to(token_ids.device)
        table[ids] = torch.arange(len(ids), dtype=token_ids.dtype, device=token_ids.device)
        inside = (token_ids >= 0) & (token_ids < width)
        return table[token_ids.where(inside, 0)].masked_fill(~inside, OUTSIDE)

    def token_id(self, column: int) -> int:
        return int(self.ids[column])
