"""The hashes by which a model is known, on disk and in memory.

Beside a model that a run has written stands a record of its files. It is compared wherever the model is
loaded: weights that changed on the disk would be trained from and measured without a word.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from vlm_distill.adapters.adapter import LoadOptions
from vlm_distill.config import user_path
from vlm_distill.files import hash_json, sha256_file
from vlm_distill.models.gguf import is_gguf
from vlm_distill.models.names import SETTINGS_FILES, resolve, weight_files
from vlm_distill.state import damaged, find_state, write_state


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """The hashes of a model's files by their names, and what to `delete` to have it made again.

    That is the folder of the model itself, or the one around it.
    """

    files: Mapping[str, str]
    delete: Literal[".", ".."]


def record_of(folder: Path) -> Path:
    """Return where the record of a model folder stands: beside it, so that the folder is a plain one."""
    return Path(f"{folder.resolve()}.files.json")


def write_record(folder: Path, *, delete: Literal[".", ".."]) -> None:
    write_state(record_of(folder), Recorded(files=_file_hashes(folder), delete=delete))


def require_as_written(folder: Path) -> None:
    """Compare a model with its record, where it has one.

    Raises:
        DataError: a file of it, or the record, is not what was written.
    """
    path = record_of(folder)
    remedy = f"delete {folder} or the folder of its stage, and the run makes it again"
    found = find_state(Recorded, path, remedy=remedy)
    if found is None:
        return
    now = _file_hashes(folder)
    changed = [name for name in {**found.files, **now} if found.files.get(name) != now.get(name)]
    if changed:
        where = folder if found.delete == "." else folder.parent
        remedy = f"delete {where} and start the run again, which makes it anew"
        reason = "not what was written" if changed[0] in now else "missing"
        raise damaged(folder / changed[0], reason, remedy=remedy)


def fingerprint(path: Path) -> str:
    """Return a hash of everything that decides what a model on disk answers.

    Of a folder: weights, config, tokenizer and processor files, not their location or other files beside
    them. Of a GGUF file: the file.
    """
    if is_gguf(path):
        return hash_json({"gguf": sha256_file(path)})
    return hash_json(_file_hashes(path))


def _file_hashes(folder: Path) -> dict[str, str]:
    files = [folder / name for name in SETTINGS_FILES] + weight_files(folder)
    return {path.name: _file_hash(path) for path in files if path.is_file()}


def _file_hash(path: Path) -> str:
    found = path.stat()
    return _hash_once(path, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@cache
def _hash_once(path: Path, *state: int) -> str:
    """Return the hash of a file, computed once by a process as long as the file's `state` is the same."""
    return sha256_file(path)


def locate(name: str, options: LoadOptions) -> tuple[Path, str]:
    """Return where the model of a name is (`names.resolve`), and its fingerprint if loaded with `options`.

    Raises:
        AdapterError: as `resolve`.
        DataError: the model of a run is not what was written.
    """
    # Before it is looked for: one that a run wrote may be gone.
    if Path(f"{user_path(name)}.files.json").exists():
        require_as_written(user_path(name))
    path = resolve(name, trust_remote_code=options.trust_remote_code)
    require_as_written(path)
    known = fingerprint(path)
    # Quantised weights answer differently.
    return path, known if options.quantisation is None else hash_json([known, dict(options.quantisation)])


def weights_fingerprint(model: nn.Module) -> str:
    """Return a hash of the state dict of a model in memory, which differs from that of its files."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        # numpy has no bfloat16, so the bytes are hashed.
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
