"""Training checkpoints: written under a temporary name, then renamed; the newest intact one is resumed.

Learning rate, data order and random numbers are pure functions of the step, so the state is what learns
(weights, running statistics), optimiser moments, the objective's schedules, the replay buffer and the step.
Models are written elsewhere (models/save.py).
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlm_distill.errors import DataError, StorageError
from vlm_distill.files import atomic_folder, sha256_file
from vlm_distill.progress import Log
from vlm_distill.state import OtherVersionError, read_state, write_state

WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.pt", "state.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """What was saved at the end of optimiser step `step` (the number of steps done)."""

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _State:
    """What state.json holds; `sha256` are the checksums of the files beside it."""

    key: str
    step: int
    state: dict[str, Any]
    sha256: Mapping[str, str]
    format_version: Literal[3] = 3


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, key: str, keep_last: int) -> Path:
    """Write `folder/step_N` atomically, then delete all but the `keep_last` newest.

    Raises:
        StorageError: it cannot be written, for example because the disk is full; the older ones stay.
    """
    target = folder / _name(checkpoint.step)
    try:
        with atomic_folder(target) as temporary:
            _write(temporary, checkpoint, key=key)
    except StorageError as error:
        kept = _steps(folder)
        rest = f"{kept[-1].name} is kept and will be continued" if kept else "there is no older checkpoint"
        raise StorageError(f"{error}; {rest}") from None
    for old in _steps(folder)[:-keep_last]:
        shutil.rmtree(old)
    return target


def _write(temporary: Path, checkpoint: Checkpoint, *, key: str) -> None:
    save_file(_unshared(checkpoint.weights), temporary / WEIGHTS)
    torch.save(checkpoint.optimizer, temporary / OPTIMIZER)
    checksums = {name: sha256_file(temporary / name) for name in (WEIGHTS, OPTIMIZER)}
    write_state(
        temporary / STATE,
        _State(key=key, step=checkpoint.step, state=checkpoint.state, sha256=checksums),
    )


def load_latest(folder: Path, *, key: str, log: Log) -> Checkpoint | None:
    """Return the newest intact checkpoint, None where there is none; a damaged one is reported and skipped.

    Raises:
        DataError: the checkpoints belong to another model, data set or config.
    """
    for path in reversed(_steps(folder)):
        try:
            saved = _verified(path)
        except OtherVersionError:
            raise
        except DataError as error:
            log(f"checkpoint {error}; going back to the one before it")
            continue
        if saved.key != key:
            raise DataError(
                f"{path}: this checkpoint is of another student, teacher, data set or config; "
                "give the run another output folder, or delete this one to start anew"
            )
        return Checkpoint(
            step=saved.step,
            weights=load_file(path / WEIGHTS),
            optimizer=torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True),
            state=saved.state,
        )
    return None


def drop_later(folder: Path, *, step: int) -> None:
    """Delete the checkpoints of later steps, which are damaged or will be taken again."""
    for path in _steps(folder):
        if path.name > _name(step):
            shutil.rmtree(path)


def has_checkpoints(folder: Path) -> bool:
    """Return whether a stage that is not finished has saved something to go on from."""
    return bool(_steps(folder / "checkpoints"))


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*"))


def _verified(path: Path) -> _State:
    """Return the state of a checkpoint whose files are what was written; DataError for another."""
    remedy = "continue with the version that wrote it, or delete the folder"
    saved = read_state(_State, path / STATE, remedy=remedy)
    for name in (WEIGHTS, OPTIMIZER):
        file = path / name
        if not file.is_file() or sha256_file(file) != saved.sha256.get(name):
            raise DataError(f"{file}: {name} is damaged (its checksum differs)")
    return saved


def _unshared(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give every tensor its own memory: safetensors refuses tied weights."""
    seen: set[int] = set()
    result = {}
    for name, value in weights.items():
        pointer = value.data_ptr()
        result[name] = value.clone() if pointer in seen else value.contiguous()
        seen.add(pointer)
    return result
