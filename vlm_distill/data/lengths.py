"""How long stored responses are and how they ended, without their ids and texts: for reports.

A stage of a real run has tens of millions of tokens; their number per response is all that is needed here.
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlm_distill.data.store import ResponseStore
from vlm_distill.records import Finish


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredLengths:
    """The stored responses of one stage, in their order: tokens of each, the stop token included.

    `num_prompts` counts the prompts that have one; `is_complete` is False while the stage is generating.
    `written_by` names the engines.
    """

    lengths: list[int]
    finishes: list[Finish]
    num_prompts: int
    is_complete: bool
    written_by: str


def read_lengths(folder: Path) -> StoredLengths:
    """Return the lengths of the responses in a store, complete or not.

    Raises:
        DataError: the manifest or a shard is missing or damaged.
    """
    lengths: list[int] = []
    finishes: list[Finish] = []
    prompts: set[str] = set()
    store = ResponseStore(folder)
    for path in store.verified():
        table = pq.read_table(path, columns=["example_id", "token_ids", "finish"])
        lengths += pc.list_value_length(table.column("token_ids")).to_pylist()
        finishes += table.column("finish").to_pylist()
        prompts.update(table.column("example_id").to_pylist())
    return StoredLengths(
        lengths=lengths,
        finishes=finishes,
        num_prompts=len(prompts),
        is_complete=store.is_complete,
        written_by=store.written_by,
    )
