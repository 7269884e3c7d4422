"""Responses on disk: append-only Parquet shards and a manifest of checksums. One process writes a folder.

Several processes write a folder each below that of their stage, whose manifest then lists their shards too.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_distill.errors import DataError
from vlm_distill.files import atomic_path, read_json, sha256_file, write_json
from vlm_distill.records import Example, Response

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
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

    Who answered (`engines`) is recorded with every shard and is no part of the key.

    A shard counts when the manifest lists it. One that a killed process renamed but did not list is ignored,
    and the next append overwrites it, because its name follows from the number of listed shards.
    """

    def __init__(self, folder: Path):
        """Open the store in `folder`; DataError if there is none or its manifest is damaged."""
        self.folder = folder
        self._manifest = _read_manifest(folder)
        self._ids: set[str] | None = None

    @classmethod
    def create_or_resume(cls, folder: Path, key: str) -> "ResponseStore":
        """Return the store for `key`, new or with what an earlier process wrote.

        Raises:
            DataError: the folder holds responses that were made under another key.
        """
        if not (folder / MANIFEST).is_file():
            _write_manifest(
                folder, {"format_version": FORMAT_VERSION, "key": key, "complete": False, "shards": []}
            )
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
        return str(self._manifest["key"])

    @property
    def is_complete(self) -> bool:
        return bool(self._manifest["complete"])

    def __len__(self) -> int:
        return sum(shard["rows"] for shard in self._manifest["shards"])

    @property
    def engines(self) -> list[dict[str, str]]:
        """What each engine that wrote responses says of itself, in the order in which they came."""
        found: list[dict[str, str]] = []
        for shard in self._manifest["shards"]:
            if shard["engine"] not in found:
                found.append(shard["engine"])
        return found

    def reset(self, key: str) -> None:
        """Delete all responses and start again under `key`."""
        old = self._manifest["shards"]
        # The manifest goes first: a process that dies in between leaves shards that nothing lists.
        self._save({"format_version": FORMAT_VERSION, "key": key, "complete": False, "shards": []})
        for shard in old:
            (self.folder / shard["name"]).unlink(missing_ok=True)
        self._ids = set()

    def append(self, responses: Sequence[Response], engine: Mapping[str, str]) -> None:
        """Store responses that one engine made as one shard; after this returns they survive a crash.

        Raises:
            DataError: an id stands twice, here or with a stored response.
        """
        assert not self.is_complete, f"{self.folder} is complete"
        if not responses:
            return
        ids = [response.id for response in responses]
        self._check_new(ids)
        shards = self._manifest["shards"]
        path = self.folder / f"responses-{len(shards):05d}.parquet"
        table = pa.Table.from_pylist([_to_row(response) for response in responses], schema=_SCHEMA)
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
        shard = {"name": path.name, "rows": len(responses), "sha256": sha256_file(path)}
        shard["engine"] = dict(engine)
        self._save({**self._manifest, "shards": [*shards, shard]})
        self.ids().update(ids)

    def adopt(self, part: "ResponseStore") -> None:
        """List the shards of a store below this folder as well; nothing is moved, so a kill loses nothing.

        Shards that are listed already are left, so `part` may grow and be adopted again.

        Raises:
            DataError: an id of `part` is stored here too, or a shard is damaged.
        """
        assert part.key == self.key, f"{part.folder} has another key"
        prefix = part.folder.relative_to(self.folder).as_posix()
        listed = self._manifest["shards"]
        names = {shard["name"] for shard in listed}
        shards = [{**shard, "name": f"{prefix}/{shard['name']}"} for shard in part._manifest["shards"]]
        new = [shard for shard in shards if shard["name"] not in names]
        ids = [id for shard in new for id in self._shard_ids(shard)]
        self._check_new(ids)
        if new:
            self._save({**self._manifest, "shards": [*listed, *new]})
            self.ids().update(ids)

    def ids(self) -> set[str]:
        """Return the ids of all stored responses; the shards are verified the first time."""
        if self._ids is None:
            self._ids = {id for shard in self._manifest["shards"] for id in self._shard_ids(shard)}
        return self._ids

    def read(self) -> list[Response]:
        """Return all responses in the order in which they were appended.

        Raises:
            DataError: a shard is missing or was changed after it was written.
        """
        return [
            _from_row(row)
            for shard in self._manifest["shards"]
            for row in self._table(shard, None).to_pylist()
        ]

    def finish(self) -> None:
        """Mark the stage as complete."""
        self._save({**self._manifest, "complete": True})

    def _check_new(self, ids: Sequence[str]) -> None:
        twice = sorted((self.ids() & set(ids)) | {id for id, count in Counter(ids).items() if count > 1})
        if twice:
            raise DataError(
                f"{self.folder}: {len(twice)} response ids would stand twice, the first is {twice[0]}"
            )

    def _shard_ids(self, shard: dict[str, Any]) -> list[str]:
        ids: list[str] = self._table(shard, ["id"]).column("id").to_pylist()
        return ids

    def _save(self, manifest: dict[str, Any]) -> None:
        _write_manifest(self.folder, manifest)
        self._manifest = manifest

    def _table(self, shard: dict[str, Any], columns: list[str] | None) -> pa.Table:
        path = self.folder / shard["name"]
        if not path.is_file():
            raise DataError(f"{path}: the shard is missing; delete {self.folder} and generate again")
        if sha256_file(path) != shard["sha256"]:
            raise DataError(
                f"{path}: the shard is damaged (wrong checksum); delete {self.folder} and generate again"
            )
        return pq.read_table(path, columns=columns)


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


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    write_json(folder / MANIFEST, manifest)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"{folder}: no responses are stored here (no {MANIFEST}); generate them first")
    try:
        manifest = read_json(path)
    except ValueError:
        raise DataError(f"{path}: not valid JSON; delete {folder} and generate again") from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path}: expected format version {FORMAT_VERSION}, got {version}; generate into another folder"
        )
    assert isinstance(manifest, dict)
    return manifest
