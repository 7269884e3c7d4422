"""What a teacher says about stored responses, on disk, in safetensors shards.

A row group is one response: the teacher's numbers for each of its tokens, joined by response id. Which
tensors they are is the tier's (tiers.py), what they hold comes from fill.py.

Every process writes a part of its own, `rank_K`; all parts are read, however many processes there are.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlm_distill.errors import DataError
from vlm_distill.files import hash_json
from vlm_distill.progress import progress
from vlm_distill.records import Example, Response
from vlm_distill.shards import Shards, part_folder, read_parts
from vlm_distill.teacher_cache.tiers import Tier

# What the header of a shard says: response id, content, hash of the prompt ids, and number of rows of each.
_ROWS = TypeAdapter(list[tuple[str, str, str, int]])
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

    `places` says where the rows of a response are, whichever process wrote them.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], *, part: int = 0):
        """Open the store in `folder`, which may be new; this process appends to `part`.

        Raises:
            DataError: the folder holds rows that were made under another key, or a manifest is damaged.
        """
        self.folder, self.key = folder, dict(key)
        remedy = f"delete {folder} and start again to compute it anew"
        own = Shards(folder=part_folder(folder, part), key=self.key, remedy=remedy)
        parts = {shards.folder: shards for shards in read_parts(folder, remedy=remedy)}
        self._require_same_key(parts.values())
        self._own = parts.setdefault(own.folder, own)
        self._parts = list(parts.values())
        self.places: dict[str, RowSpan] = {}
        for shards in self._parts:
            for path in shards.paths():
                self.places |= _places(shards, path)

    def _require_same_key(self, parts: Iterable[Shards]) -> None:
        for key in (shards.key for shards in parts):
            changed = [name for name in {**key, **self.key} if key.get(name) != self.key.get(name)]
            if changed:
                raise DataError(
                    f"{self.folder}: was computed with another {', '.join(changed)}; delete the folder to "
                    "compute it again, or give the run another `output`"
                )

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for shards in self._parts for path in shards.paths())

    @property
    def num_tokens(self) -> int:
        return sum(place.stop - place.start for place in self.places.values())

    def verify(self) -> None:
        """Compare every shard with its checksum; DataError for one that differs."""
        label = f"{self.folder.name} cache: checksums of shards"
        for shards in self._parts:
            total = len(shards.listed)
            paths = shards.verified()
            for _ in progress(paths, label=label, total=total) if self.num_bytes > LARGE else paths:
                pass

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
        names = responses[0].tensors.keys()
        tensors = {
            name: torch.cat([one.tensors[name] for one in responses]).cpu().contiguous() for name in names
        }
        rows = [
            [one.response_id, one.content, one.prompt_ids_hash, len(next(iter(one.tensors.values())))]
            for one in responses
        ]
        path = self._own.append(
            lambda path: save_file(tensors, path, metadata={"rows": json.dumps(rows)}),
            name="rows-{:05d}.safetensors",
            num_rows=len(rows),
            writer={},
        )
        self.places |= _places(self._own, path)


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


def _places(shards: Shards, path: Path) -> dict[str, RowSpan]:
    try:
        with safe_open(path, framework="pt") as handle:
            rows = _ROWS.validate_json(handle.metadata()["rows"])
    # The header is not covered by any checksum before it is read.
    except (SafetensorError, ValueError, TypeError, KeyError):
        raise shards.damaged(path) from None
    places, start = {}, 0
    for response_id, content, prompt_ids_hash, count in rows:
        places[response_id] = RowSpan(
            shard=path, start=start, stop=start + count, content=content, prompt_ids_hash=prompt_ids_hash
        )
        start += count
    return places
