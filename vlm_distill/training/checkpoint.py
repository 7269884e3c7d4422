"""Training checkpoints: written under a temporary name, then renamed; the newest intact one is resumed.

Learning rate, data order and random numbers are pure functions of the step, so the state is the learning
weights, optimiser moments, the objective's schedules, the replay buffer and the step. Models are written
elsewhere (models/save.py).
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlm_distill.errors import DataError
from vlm_distill.files import read_json, sha256_file, temporary_path, write_json
from vlm_distill.progress import Log

FORMAT_VERSION = 3
WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.pt", "state.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """What was saved at the end of optimiser step `step` (the number of steps done)."""

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, key: str, keep_last: int) -> Path:
    """Write `folder/step_N` atomically, then delete all but the `keep_last` newest.

    Raises:
        DataError: it cannot be written, for example because the disk is full; the older ones stay.
    """
    target = folder / _name(checkpoint.step)
    temporary = temporary_path(target)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _write(temporary, checkpoint, key=key)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    # Each of the three libraries has its own error for a full disk.
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        kept = _steps(folder)
        rest = f"{kept[-1].name} is kept and will be continued" if kept else "there is no older one"
        raise DataError(
            f"{target}: the checkpoint cannot be written ({error}); {rest}: make room and start the same "
            "command again"
        ) from None
    for old in _steps(folder)[:-keep_last]:
        shutil.rmtree(old)
    return target


def _write(temporary: Path, checkpoint: Checkpoint, *, key: str) -> None:
    temporary.mkdir(parents=True)
    save_file(_unshared(checkpoint.weights), temporary / WEIGHTS)
    torch.save(checkpoint.optimizer, temporary / OPTIMIZER)
    checksums = {name: sha256_file(temporary / name) for name in (WEIGHTS, OPTIMIZER)}
    write_json(
        temporary / STATE,
        {
            "format_version": FORMAT_VERSION,
            "key": key,
            "step": checkpoint.step,
            "state": checkpoint.state,
            "sha256": checksums,
        },
    )


def load_latest(folder: Path, *, key: str, log: Log) -> Checkpoint | None:
    """Return the newest intact checkpoint, None where there is none; a damaged one is reported and skipped.

    Raises:
        DataError: the checkpoints belong to another model, data set or config.
    """
    for path in reversed(_steps(folder)):
        problem = _damage(path)
        if problem:
            log(f"checkpoint {path}: {problem}; going back to the one before it")
            continue
        saved = read_json(path / STATE)
        if saved["format_version"] != FORMAT_VERSION:
            raise DataError(
                f"{path}: expected checkpoint format {FORMAT_VERSION}, got {saved['format_version']}; "
                "continue with the version that wrote it or delete the folder"
            )
        if saved["key"] != key:
            raise DataError(
                f"{path}: this checkpoint is of another student, teacher, data set or config; "
                "give the run another output folder, or delete this one to start anew"
            )
        return Checkpoint(
            step=saved["step"],
            weights=load_file(path / WEIGHTS),
            optimizer=torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True),
            state=saved["state"],
        )
    return None


def drop_later(folder: Path, *, step: int) -> None:
    """Delete the checkpoints of later steps, which are damaged or will be taken again."""
    for path in _steps(folder):
        if path.name > _name(step):
            shutil.rmtree(path)


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*"))


def _damage(path: Path) -> str | None:
    try:
        saved = read_json(path / STATE)
        for name, expected in saved["sha256"].items():
            if sha256_file(path / name) != expected:
                return f"{name} is damaged (its checksum differs)"
    except (OSError, ValueError, KeyError) as error:
        return f"{STATE} or a file it names cannot be read ({type(error).__name__})"
    return None


def _unshared(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give every tensor its own memory: safetensors refuses tied weights."""
    seen: set[int] = set()
    result = {}
    for name, value in weights.items():
        pointer = value.data_ptr()
        result[name] = value.clone() if pointer in seen else value.contiguous()
        seen.add(pointer)
    return result
