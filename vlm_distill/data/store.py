"""Responses on disk, in Parquet shards: who answered what, joined by id.

Several processes write a part each below the folder of their stage, and all parts are read.
"""

import dataclasses
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_distill.errors import DataError
from vlm_distill.records import Example, Response
from vlm_distill.shards import MANIFEST, Shard, Shards, read_parts

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("example_id", pa.string()),
        ("author", pa.string()),
        ("round", pa.int32()),
        ("sample_index", pa.int32()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("finish", pa.string()),
        ("model_fingerprint", pa.string()),
        ("prompt_ids_hash", pa.string()),
        ("sampling", pa.string()),
        # Double, so that a response reads back equal whatever back end made it.
        ("token_log_probs", pa.list_(pa.float64())),
        ("reencoded", pa.bool_()),
    ]
)


class ResponseStore:
    """The responses of one stage. `key` is the hash of the question that they answer.

    Who answered (`engines`) is recorded with every shard and is no part of the key. Parts below the folder
    with the same key belong to it; this store appends to none of them.
    """

    def __init__(self, folder: Path):
        """Open the store in `folder`.

        Raises:
            DataError: there is none, a manifest is damaged, or a part of a complete one is missing.
        """
        if not (folder / MANIFEST).exists():
            raise DataError(f"{folder}: no responses are stored here (no {MANIFEST}); generate them first")
        self.folder = folder
        remedy = remedy_for(folder)
        self._own = Shards.read(folder, remedy=remedy)
        self._parts = [part for part in read_parts(folder, remedy=remedy) if part.key == self.key]
        self._ids: set[str] | None = None
        if self.is_complete and len(self) != self._own.num_complete:
            raise DataError(
                f"{folder}: expected {self._own.num_complete:,} responses, found {len(self):,}: "
                f"the part of a process (rank_*) is missing or grew; {remedy}"
            )

    @classmethod
    def create_or_resume(cls, folder: Path, key: str) -> "ResponseStore":
        """Return the store for `key`, new or with what an earlier process wrote.

        Raises:
            DataError: the folder holds responses that were made under another key.
        """
        if not (folder / MANIFEST).exists():
            Shards(folder=folder, key=key, remedy=remedy_for(folder)).save()
        store = cls(folder)
        if store.key != key:
            if len(store) or store.is_complete:
                raise DataError(
                    f"{folder}: holds {len(store)} responses made from other settings or inputs "
                    f"(key {store.key[:12]}, now {key[:12]}); delete the folder or use another one"
                )
            store.reset(key)
        return store

    @property
    def key(self) -> str:
        return str(self._own.key)

    @property
    def is_complete(self) -> bool:
        return self._own.num_complete is not None

    @property
    def engines(self) -> list[dict[str, str]]:
        """What each engine that wrote responses says of itself."""
        found: list[dict[str, str]] = []
        for shard in self._listed():
            if shard.writer not in found:
                found.append(dict(shard.writer))
        return found

    @property
    def written_by(self) -> str:
        """The same in a few words."""
        return " and ".join(map(engine_name, self.engines))

    def __len__(self) -> int:
        return sum(shards.num_rows for shards in (self._own, *self._parts))

    def _listed(self) -> list[Shard]:
        return [shard for shards in (self._own, *self._parts) for shard in shards.listed]

    def reset(self, key: str) -> None:
        """Delete all responses and start again under `key`."""
        self._own.reset(key)
        for part in self._parts:
            shutil.rmtree(part.folder)
        self._parts, self._ids = [], set()

    def append(self, responses: Sequence[Response], engine: Mapping[str, str]) -> None:
        """Store responses that one engine made as one shard; after this returns they survive a crash.

        Raises:
            DataError: an id stands twice, here or with a stored response, or the disk is full.
        """
        assert not self.is_complete, f"{self.folder} is complete"
        if not responses:
            return
        ids = [response.id for response in responses]
        self._check_unique([*ids, *self.ids().intersection(ids)])
        table = pa.Table.from_pylist([_to_row(response) for response in responses], schema=_SCHEMA)
        self._own.append(
            lambda path: pq.write_table(table, path, compression="zstd"),
            name="responses-{:05d}.parquet",
            num_rows=len(responses),
            writer=engine,
        )
        self.ids().update(ids)

    def ids(self) -> set[str]:
        """Return the ids of all stored responses; the shards are verified the first time.

        Raises:
            DataError: a shard is missing or was changed, or two parts have the same response.
        """
        if self._ids is None:
            tables = (pq.read_table(path, columns=["id"]) for path in self.verified())
            ids = [id for table in tables for id in table.column("id").to_pylist()]
            self._check_unique(ids)
            self._ids = set(ids)
        return self._ids

    def read(self) -> list[Response]:
        """Return all responses: in the order in which they were appended, those of parts behind the others.

        Raises:
            DataError: a shard is missing or was changed after it was written, or two parts have the same
                response.
        """
        rows = [_from_row(row) for path in self.verified() for row in pq.read_table(path).to_pylist()]
        self._check_unique([response.id for response in rows])
        return rows

    def verified(self) -> Iterator[Path]:
        """Yield the files; DataError where one is missing or was changed after it was written."""
        for shards in (self._own, *self._parts):
            yield from shards.verified()

    def finish(self) -> None:
        """Mark the stage as complete."""
        self._own.finish(num_rows=len(self))

    def _check_unique(self, ids: Sequence[str]) -> None:
        twice = sorted(id for id, count in Counter(ids).items() if count > 1)
        if twice:
            raise DataError(
                f"{self.folder}: {len(twice)} response ids stand twice, the first is {twice[0]}; was it "
                f"written by two jobs at once? {remedy_for(self.folder)}"
            )


def all_stored(folder: Path) -> bool:
    """Return whether the folder of a stage has all its responses, to whichever question.

    Raises:
        DataError: as `ResponseStore`.
    """
    return (folder / MANIFEST).exists() and ResponseStore(folder).is_complete


def engine_name(settings: Mapping[str, str]) -> str:
    """Return what an engine says of itself in a few words: kind, version and dtype, then the rest by name."""
    known = ("kind", "version", "dtype")
    rest = [f"{name} {value}" for name, value in settings.items() if name not in known]
    return " ".join([*(settings[name] for name in known if name in settings), *rest])


def join(examples: Sequence[Example], responses: Sequence[Response]) -> dict[str, list[Response]]:
    """Return the responses of every example by its id, in their order; an empty list for one that has none.

    Raises:
        DataError: a response answers an example that is not there.
    """
    joined: dict[str, list[Response]] = {example.id: [] for example in examples}
    lost = [response for response in responses if response.example_id not in joined]
    if lost:
        raise DataError(
            f"{len(lost)} of {len(responses)} responses answer none of the {len(joined)} examples, "
            f"the first is response {lost[0].id} to example {lost[0].example_id!r}; "
            "were they made from another recipe?"
        )
    for response in responses:
        joined[response.example_id].append(response)
    return joined


def _to_row(response: Response) -> dict[str, Any]:
    return {field.name: getattr(response, field.name) for field in dataclasses.fields(response)}


def _from_row(row: dict[str, Any]) -> Response:
    log_probs = row["token_log_probs"]
    return Response(
        **{
            **row,
            "token_ids": tuple(row["token_ids"]),
            "token_log_probs": None if log_probs is None else tuple(log_probs),
        }
    )


def remedy_for(folder: Path) -> str:
    """Return what to do about stored responses that cannot be used."""
    return f"delete {folder} and generate again"
