"""Tensors by key, in memory and on disk, within the bounds of a config: where features of images are kept."""

from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path

from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vlm_distill.config import Record
from vlm_distill.errors import DataError, StorageError
from vlm_distill.files import atomic_path, sha256_bytes, sha256_file
from vlm_distill.progress import Log

SHARD_BYTES = 64 * 2**20


class VisionCacheConfig(Record):
    """How much is kept, in GiB: in the memory of each process, and in the run folder. Both 0: nothing."""

    memory_gib: float = Field(default=1.0, ge=0)
    disk_gib: float = Field(default=4.0, ge=0)


class FeatureStore:
    """A store of tensors by key: the least recently used ones leave memory first, nothing leaves the disk.

    Files are named by the hash of their content and only added, so that several processes may write into
    one folder. What was not flushed is lost with the process, and computed again.
    """

    def __init__(self, config: VisionCacheConfig, *, folder: Path | None, log: Log = print) -> None:
        self.num_computed = self.num_found = 0
        self._config, self._folder, self._log = config, folder, log
        self._memory: OrderedDict[str, Tensor] = OrderedDict()
        self._memory_bytes = self._pending_bytes = 0
        self._pending: dict[str, Tensor] = {}
        self._verified: set[Path] = set()
        self._is_full = folder is None or not config.disk_gib
        self._shards = {} if folder is None else _index(folder)

    def __str__(self) -> str:
        return f"{self.num_computed:,} images encoded, {self.num_found:,} times features were there already"

    def get(self, key: str) -> Tensor | None:
        """Return a tensor on the CPU, None where there is none.

        Raises:
            DataError: a file of the cache is damaged.
        """
        found = self._memory.get(key)
        if found is not None:
            self._memory.move_to_end(key)
            return found
        found = self._pending.get(key)
        if found is None and key in self._shards:
            found = self._read(self._shards[key], key)
        if found is not None:
            self._remember(key, found)
        return found

    def put(self, key: str, value: Tensor) -> None:
        """Keep a tensor on the CPU, which nobody may change any more."""
        self._remember(key, value)
        if not self._is_full and key not in self._shards and key not in self._pending:
            self._pending[key] = value
            self._pending_bytes += value.nbytes
            if self._pending_bytes >= SHARD_BYTES:
                self.flush()

    def flush(self) -> None:
        """Write what is only in memory; beyond the disk's share nothing is written, and a line says so."""
        pending, self._pending, self._pending_bytes = self._pending, {}, 0
        if not pending:
            return
        assert self._folder is not None
        # Other processes write into the folder too.
        self._shards |= _index(self._folder, known=frozenset(self._shards.values()))
        pending = {key: value for key, value in pending.items() if key not in self._shards}
        if not pending:
            return
        data = save(pending)
        used = sum(path.stat().st_size for path in self._folder.glob("*.safetensors"))
        if used + len(data) > self._config.disk_gib * 2**30:
            self._is_full = True
            self._log(
                f"vision cache: {self._folder} is full ({used / 2**30:.1f} GiB); further features stay in "
                "memory only; raise vision_cache.disk_gib to keep them"
            )
            return
        path = self._folder / f"{sha256_bytes(data)}.safetensors"
        try:
            with atomic_path(path) as temporary:
                temporary.write_bytes(data)
        except StorageError as error:
            self._is_full = True
            self._log(f"vision cache: {error}; until then further features stay in memory only")
            return
        self._verified.add(path)
        self._shards |= dict.fromkeys(pending, path)

    def _remember(self, key: str, value: Tensor) -> None:
        if key in self._memory:
            return
        self._memory[key] = value
        self._memory_bytes += value.nbytes
        while self._memory_bytes > self._config.memory_gib * 2**30:
            self._memory_bytes -= self._memory.popitem(last=False)[1].nbytes

    def _read(self, path: Path, key: str) -> Tensor:
        try:
            if path not in self._verified and sha256_file(path) != path.stem:
                raise _damaged(path)
            self._verified.add(path)
            with safe_open(path, framework="pt") as handle:
                # A copy: what is read would keep a mapping of the whole file.
                tensor: Tensor = handle.get_tensor(key).clone()
        except (OSError, SafetensorError):
            raise _damaged(path) from None
        return tensor


def _index(folder: Path, *, known: Collection[Path] = ()) -> dict[str, Path]:
    """Return which file holds which key, of files that are not `known`; only their heads are read."""
    shards: dict[str, Path] = {}
    for path in sorted(set(folder.glob("*.safetensors")) - set(known)):
        try:
            with safe_open(path, framework="pt") as handle:
                shards |= dict.fromkeys(handle.keys(), path)
        except (OSError, SafetensorError):
            raise _damaged(path) from None
    return shards


def _damaged(path: Path) -> DataError:
    return DataError(f"{path}: not the features that were written; delete this file, they are computed again")
