"""What a teacher says about stored responses, on disk: append-only safetensors shards and their manifests.

A row group is one response: the teacher's numbers for each of its tokens, joined by response id. Which
tensors they are is the tier's (tiers.py), what they hold comes from fill.py.

Every process writes a part of its own, `rank_K`; all parts are read, however many processes there are.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlm_distill.errors import DataError
from vlm_distill.files import atomic_path, hash_json, read_json, sha256_file, write_json
from vlm_distill.progress import progress
from vlm_distill.records import Example, Response
from vlm_distill.teacher_cache.tiers import Tier

FORMAT_VERSION = 1
MANIFEST, PART, PARTS = "manifest.json", "rank_{}", "rank_*"
# File handles of one reader.
MAX_OPEN = 64
# From so many bytes on, reading all of a cache takes long enough to be watched.
LARGE = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedResponse:
    """The teacher's tensors for one response, [token, ...] each.

    `content` is the hash of prompt, images and token ids (`content_hash`), `prompt_ids_hash` that of the ids
    that the teacher's processor made of the prompt.
    """

    response_id: str
    content: str
    prompt_ids_hash: str
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSpan:
    """Where a response stands: rows `start` to `stop` of a shard."""

    shard: Path
    start: int
    stop: int
    content: str
    prompt_ids_hash: str


def content_hash(example: Example, response: Response) -> str:
    """Return the hash of what the teacher reads: messages, images and the ids of the response."""
    return hash_json([example.prompt_hash(), list(response.token_ids)])[:32]


class CacheStore:
    """The cache of one set of responses. `key` names by part what its rows depend on beside the responses.

    A shard counts when a manifest lists it, so a kill leaves nothing half written.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], *, part: int = 0):
        """Open the store in `folder`, which may be new; this process appends to `part`.

        Raises:
            DataError: the folder holds rows that were made under another key, or a manifest is damaged.
        """
        self.folder, self.key, self._own = folder, dict(key), folder / PART.format(part)
        self.places: dict[str, RowSpan] = {}
        self._shards: dict[Path, list[dict[str, Any]]] = {self._own: []}
        for manifest in sorted(folder.glob(f"{PARTS}/{MANIFEST}")):
            self._shards[manifest.parent] = self._listed(manifest)
            for shard in self._shards[manifest.parent]:
                self.places |= _places(manifest.parent / shard["name"])

    def _listed(self, path: Path) -> list[dict[str, Any]]:
        try:
            manifest = read_json(path)
            version, key, shards = manifest["format_version"], manifest["key"], manifest["shards"]
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{path}: damaged; delete {self.folder} and start again to compute it anew"
            ) from None
        changed = [name for name in dict.fromkeys([*key, *self.key]) if key.get(name) != self.key.get(name)]
        if version != FORMAT_VERSION:
            changed = [f"format version ({version}, expected {FORMAT_VERSION})"]
        if changed:
            raise DataError(
                f"{self.folder}: was computed with another {', '.join(changed)}; delete the folder to "
                "compute it again, or give the run another `output`"
            )
        listed: list[dict[str, Any]] = shards
        return listed

    @property
    def num_bytes(self) -> int:
        return sum((part / shard["name"]).stat().st_size for part, shard in self._all())

    @property
    def num_tokens(self) -> int:
        return sum(place.stop - place.start for place in self.places.values())

    def _all(self) -> list[tuple[Path, dict[str, Any]]]:
        return [(part, shard) for part, shards in self._shards.items() for shard in shards]

    def verify(self) -> None:
        """Compare every shard with its checksum; DataError for one that differs."""
        shards = self._all()
        label = f"{self.folder.name} cache: checksums of shards"
        for part, shard in progress(shards, label=label) if self.num_bytes > LARGE else shards:
            if sha256_file(part / shard["name"]) != shard["sha256"]:
                raise _damaged(part / shard["name"])

    def missing(self, wanted: Mapping[str, str]) -> set[str]:
        """Return the response ids without rows."""
        return wanted.keys() - self.places.keys()

    def changed(self, wanted: Mapping[str, str]) -> list[str]:
        """Return the ids of responses that had another content when they were cached.

        `wanted` maps ids to the hash of their content: of prompt, images and token ids.
        """
        return [
            id for id, content in wanted.items() if id in self.places and self.places[id].content != content
        ]

    def append(self, responses: Sequence[CachedResponse]) -> None:
        """Store responses as one shard; after this returns they survive a crash."""
        if not responses:
            return
        assert not self.places.keys() & {one.response_id for one in responses}, "cached twice"
        listed = self._shards[self._own]
        path = self._own / f"rows-{len(listed):05d}.safetensors"
        names = responses[0].tensors.keys()
        tensors = {
            name: torch.cat([one.tensors[name] for one in responses]).cpu().contiguous() for name in names
        }
        rows = [
            [one.response_id, one.content, one.prompt_ids_hash, len(next(iter(one.tensors.values())))]
            for one in responses
        ]
        try:
            with atomic_path(path) as temporary:
                save_file(tensors, temporary, metadata={"rows": json.dumps(rows)})
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{path}: cannot be written ({error}); what is stored is kept: make room and start again"
            ) from None
        listed.append({"name": path.name, "responses": len(rows), "sha256": sha256_file(path)})
        manifest = {"format_version": FORMAT_VERSION, "key": self.key, "shards": listed}
        write_json(self._own / MANIFEST, manifest)
        self.places |= _places(path)


class CacheReader:
    """Rows of several stores of one tier, by response id."""

    def __init__(self, stores: Sequence[CacheStore], *, tier: Tier):
        self.tier = tier
        self._places = {id: place for store in stores for id, place in store.places.items()}
        self._handles: dict[Path, Any] = {}

    def read(self, response_ids: Sequence[str]) -> dict[str, Tensor]:
        """Return the tensors of the responses one after the other, on the CPU: [row, ...] each.

        Raises:
            DataError: a response has no rows.
        """
        lost = [id for id in response_ids if id not in self._places]
        if lost:
            raise DataError(
                f"teacher cache: {len(lost)} of {len(response_ids)} responses are not in it (first: "
                f"{lost[0]}); start the run again to compute them"
            )
        places = [self._places[id] for id in response_ids]
        pieces = [self._slices(place) for place in places]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}

    def _slices(self, place: RowSpan) -> dict[str, Tensor]:
        handle = self._handle(place.shard)
        return {name: handle.get_slice(name)[place.start : place.stop] for name in handle.keys()}  # noqa: SIM118

    def _handle(self, path: Path) -> Any:
        if path not in self._handles:
            if len(self._handles) >= MAX_OPEN:
                self._handles.pop(next(iter(self._handles)))
            self._handles[path] = safe_open(path, framework="pt")
        return self._handles[path]


def _places(path: Path) -> dict[str, RowSpan]:
    if not path.is_file():
        raise DataError(
            f"{path}: the shard is missing; delete {path.parents[1]} and start again to compute it anew"
        )
    try:
        with safe_open(path, framework="pt") as handle:
            rows = json.loads(handle.metadata()["rows"])
    # The header is not covered by any checksum before it is read.
    except (SafetensorError, ValueError, TypeError, KeyError):
        raise _damaged(path) from None
    places, start = {}, 0
    for response_id, content, prompt_ids_hash, count in rows:
        places[response_id] = RowSpan(
            shard=path, start=start, stop=start + count, content=content, prompt_ids_hash=prompt_ids_hash
        )
        start += count
    return places


def _damaged(path: Path) -> DataError:
    return DataError(
        f"{path}: the shard is damaged; delete {path.parents[1]} and start again to compute it anew"
    )
