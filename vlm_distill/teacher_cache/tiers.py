"""What of a teacher is kept, from exact to small: a record per tier that stores, reads and sizes it.

A new tier is a record, its name in `TierName` and a line of `TIERS`. The files are in store.py, the teacher's
forward in fill.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from vlm_distill.batches import Head
from vlm_distill.config import Record
from vlm_distill.errors import ConfigError
from vlm_distill.losses import ComparedIds, Objective, Rows
from vlm_distill.losses.compared_ids import IdsKey
from vlm_distill.losses.row_blocks import TeacherRows
from vlm_distill.losses.rows import label_log_probs, row_chunks
from vlm_distill.losses.teacher_rows import LabelRows, TopRows, top_rows

HIDDEN, IDS, LOG_PROBS, LABEL_LOG_PROBS = "hidden", "ids", "log_probs", "label_log_probs"
LOGIT_BYTES = 64 * 2**20

Tensors: TypeAlias = Mapping[str, Tensor]
"""By name, [row, ...] each: a row is a response token."""
TierName: TypeAlias = Literal["hidden", "top_k", "sampled"]


class CacheConfig(Record):
    """What of the teacher is kept, so that training loads its output layer at most.

    `hidden`: the final hidden states of response tokens, exact as the teacher computes them or, with `dtype`
    bfloat16, rounded. `top_k`: the `k` most probable tokens, the rest as one bucket. `sampled`: the
    log-probability of the response token alone. `batch_size` prompts are forwarded together.
    """

    tier: TierName = "hidden"
    dtype: Literal["teacher", "bfloat16"] = "teacher"
    k: int = Field(default=128, ge=1, le=10**6)
    batch_size: int = Field(default=32, ge=1, le=10**6)


@runtime_checkable
class Tier(Protocol):
    """What the cache, training and checks ask of a tier."""

    def key(self, ids: IdsKey) -> dict[str, Any]:
        """Return what the tensors depend on beside the teacher; `ids` is the key of those compared."""

    def keep(self, rows: Rows, columns: Int[Tensor, " row"]) -> dict[str, Tensor]:
        """Return what is stored of the teacher's rows, on the CPU; response tokens stand in `columns`."""

    def rows(self, tensors: Tensors, head: Head, compared: ComparedIds) -> TeacherRows:
        """Return what the loss core reads, given what was kept and the teacher's output layer."""

    def bytes_per_token(self, head: Head, *, dtype: torch.dtype) -> int:
        """Return what a response token takes on disk, headers aside; the teacher computes in `dtype`."""

    def serves(self, objective: Objective) -> str | None:
        """Return why an objective cannot be trained from what is kept, to follow its name; None if it can."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hidden:
    """The final hidden states: everything that the teacher's output layer makes of them."""

    dtype: Literal["teacher", "bfloat16"] = "teacher"

    def key(self, ids: IdsKey) -> dict[str, Any]:
        return {"stored dtype": self.dtype}

    def keep(self, rows: Rows, columns: Int[Tensor, " row"]) -> dict[str, Tensor]:
        return {HIDDEN: rows.hidden.cpu().to(self._stored(rows.hidden.dtype))}

    def rows(self, tensors: Tensors, head: Head, compared: ComparedIds) -> Rows:
        return Rows(hidden=tensors[HIDDEN].to(head.weight.dtype), head=head, compared=compared)

    def bytes_per_token(self, head: Head, *, dtype: torch.dtype) -> int:
        return head.weight.shape[1] * self._stored(dtype).itemsize

    def serves(self, objective: Objective) -> str | None:
        return None

    def _stored(self, dtype: torch.dtype) -> torch.dtype:
        return torch.bfloat16 if self.dtype == "bfloat16" else dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class TopK:
    """The k most probable tokens with the rest as one bucket, and the response token."""

    k: int = 128

    def key(self, ids: IdsKey) -> dict[str, Any]:
        return {"k": self.k, "vocabulary": ids}

    def keep(self, rows: Rows, columns: Int[Tensor, " row"]) -> dict[str, Tensor]:
        def of_chunk(logits: Tensor, columns: Tensor) -> dict[str, Tensor]:
            top = top_rows(logits, columns, k=self.k)
            # [chunk, k], [chunk, k + 1] with the rest last, [chunk]
            return {IDS: top.columns.int(), LOG_PROBS: top.log_probs, LABEL_LOG_PROBS: top.label_log_probs}

        return _by_chunks(rows, columns, of_chunk)

    def rows(self, tensors: Tensors, head: Head, compared: ComparedIds) -> TopRows:
        return TopRows(
            columns=tensors[IDS], log_probs=tensors[LOG_PROBS], label_log_probs=tensors[LABEL_LOG_PROBS]
        )

    def bytes_per_token(self, head: Head, *, dtype: torch.dtype) -> int:
        # Ids and log-probabilities, those of the rest and of the response token.
        return 8 * min(self.k, len(head.weight) - 1) + 8

    def serves(self, objective: Objective) -> str | None:
        if any(term.mixes_logits for term in objective.terms):
            return (
                "has a target that lies between all logits of both models, and `top_k` keeps some; expected "
                "hidden"
            )
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """The log-probability of the response token alone: all that a server gives."""

    def key(self, ids: IdsKey) -> dict[str, Any]:
        return {"vocabulary": ids}

    def keep(self, rows: Rows, columns: Int[Tensor, " row"]) -> dict[str, Tensor]:
        def of_chunk(logits: Tensor, columns: Tensor) -> dict[str, Tensor]:
            return {LABEL_LOG_PROBS: label_log_probs(logits.log_softmax(dim=1), columns)}

        return _by_chunks(rows, columns, of_chunk)

    def rows(self, tensors: Tensors, head: Head, compared: ComparedIds) -> LabelRows:
        return LabelRows(label_log_probs=tensors[LABEL_LOG_PROBS])

    def bytes_per_token(self, head: Head, *, dtype: torch.dtype) -> int:
        return 4

    def serves(self, objective: Objective) -> str | None:
        if any(term.compares_distributions for term in objective.terms):
            return (
                "compares distributions, and `sampled` keeps the log-probability of the response token "
                "alone; expected hidden or top_k, or an objective on pairs such as dpo with "
                "`reference: teacher`"
            )
        return None


TIERS: dict[TierName, Callable[[CacheConfig], Tier]] = {
    "hidden": lambda config: Hidden(dtype=config.dtype),
    "top_k": lambda config: TopK(k=config.k),
    "sampled": lambda config: Sampled(),
}


def tier_of(config: CacheConfig) -> Tier:
    """Return the tier that a config names, with its settings."""
    return TIERS[config.tier](config)


def require_tier(objective: Objective, config: CacheConfig, *, name: str) -> None:
    """Refuse an objective that needs more of the teacher than the cache holds.

    Raises:
        ConfigError: its responses are drawn during training, or it needs a distribution that is not there.
    """
    if not objective.needs_teacher:
        return
    if objective.stored_authors != objective.authors:
        raise ConfigError(
            f"cache: objective {name} draws responses during training, and no cache can hold them; "
            "leave `cache` out"
        )
    reason = tier_of(config).serves(objective)
    if reason is not None:
        raise ConfigError(f"cache.tier: objective {name} {reason}")


def _by_chunks(
    rows: Rows, columns: Int[Tensor, " row"], of_chunk: Callable[[Tensor, Tensor], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Return what `of_chunk` makes of logits and columns, of all chunks one after the other."""
    found: list[dict[str, Tensor]] = []
    # Not only now and then: a chunk of all columns may be as large as the body's own activations.
    for chunk in row_chunks(rows, LOGIT_BYTES):
        logits = rows.chunk(chunk).logits()
        kept = of_chunk(logits, columns[chunk].to(logits.device))
        found.append({name: _stored(value) for name, value in kept.items()})
    return {name: torch.cat([one[name] for one in found]) for name in found[0]} if found else {}


def _stored(value: Tensor) -> Tensor:
    """Return ids as they are and numbers in float32, on the CPU."""
    return (value.float() if value.is_floating_point() else value).cpu()
