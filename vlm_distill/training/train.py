"""A training stage: from a loaded student and items to a model folder.

It is skipped when it is done and resumed when it was killed.
"""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.errors import DataError
from vlm_distill.models.load import load_model
from vlm_distill.models.lora import merge_lora
from vlm_distill.models.save import save_recorded
from vlm_distill.processes import wait
from vlm_distill.progress import Log
from vlm_distill.state import find_state, read_state, write_state
from vlm_distill.training.config import TrainConfig
from vlm_distill.training.parts import prepare_parts
from vlm_distill.training.step import Stage
from vlm_distill.training.trainer import Trainer

RECORD, MODEL = "stage.json", "model"


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What is written beside the model of a finished stage.

    `key` names inputs and config, `tokens` counts the student's response tokens that were trained on,
    `objective` is the state that the next stage goes on from, `left_out` counts prompts without a usable
    response, `seconds` are those of responses and training.
    """

    key: str
    steps: int
    tokens: int
    objective: dict[str, Any]
    left_out: int
    seconds: Mapping[str, float]
    too_long: int = 0


def read_trained(folder: Path) -> Trained:
    """Return the result of a finished stage; DataError where it is missing or damaged."""
    return read_state(Trained, folder / RECORD, remedy=_remedy(folder))


def find_trained(folder: Path) -> Trained | None:
    """Return the result of a stage, None where it is not finished; DataError for a damaged one."""
    return find_state(Trained, folder / RECORD, remedy=_remedy(folder))


def _remedy(folder: Path) -> str:
    return f"delete {folder} to train it again"


def finished(folder: Path, *, key: str) -> Trained | None:
    """Return the result of a stage that is complete under `key`, None where it still has to run.

    Raises:
        DataError: the folder holds the result of another student, teacher, data set or config, or no model.
    """
    found = find_trained(folder)
    if found is not None and not (folder / MODEL).is_dir():
        raise DataError(f"{folder / MODEL}: missing; {_remedy(folder)}")
    if found is not None and found.key != key:
        raise DataError(
            f"{folder}: holds a student that was trained from another start, with other data or with another "
            "config; give the run another `output`, or delete this folder to train it again"
        )
    if found is not None:
        _remove_checkpoints(folder)  # a kill may have come before
    return found


def train(
    config: TrainConfig,
    stage: Stage,
    *,
    log: Log,
    seconds_before: float = 0.0,
    left_out: int = 0,
    too_long: int = 0,
) -> Trained:
    """Train, save the model under `stage.folder / "model"` and record that the stage is complete.

    stage.json also says how many seconds this process trained, and `seconds_before`, what the stored
    responses took; neither counts what an earlier, interrupted process did. `left_out` prompts had no usable
    response or were `too_long` with it.
    """
    trainer = Trainer(config, stage, log)
    stored = sum(item.num_tokens for item in stage.items)
    log(
        f"{stage.label}: {trainer.budget} with {config.batch_size} prompts a step out of "
        f"{len(stage.items):,}, {stored:,} stored response tokens an epoch"
    )
    started = time.monotonic()
    trainer.run()
    trained = Trained(
        key=stage.key,
        steps=trainer.step,
        tokens=trainer.trained_tokens,
        objective=stage.objective.state_dict(),
        left_out=left_out,
        too_long=too_long,
        seconds={"responses": seconds_before, "training": time.monotonic() - started},
    )
    _write(config, stage, trainer, trained)
    wait()
    log(f"{stage.label}: {trained.tokens:,} response tokens trained in {time.monotonic() - started:.0f} s")
    return trained


def _write(config: TrainConfig, stage: Stage, trainer: Trainer, trained: Trained) -> None:
    """Write the student and then its record, from the main process; all processes call it together."""
    learned = trainer.learned() if trainer.is_sharded else {}
    if trainer.accelerator.is_main_process:
        student = _whole(config, stage, learned) if trainer.is_sharded else stage.student
        merge_lora(student)
        save_recorded(student, stage.folder / MODEL, delete="..")
        write_state(stage.folder / RECORD, trained)
        _remove_checkpoints(stage.folder)


def _remove_checkpoints(folder: Path) -> None:
    for name in ("checkpoints", "best"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _whole(config: TrainConfig, stage: Stage, learned: dict[str, Any]) -> LoadedModel:
    """Return a student in one piece: its start, from where it was loaded, with the weights that learned."""
    options = LoadOptions(trust_remote_code=stage.trust_remote_code)
    loaded = load_model(stage.student.path, options, adapter=stage.student.adapter)
    student = replace(loaded, tokenizer=stage.student.tokenizer, processor=stage.student.processor)
    # It may stop at its teacher's stop ids as well by now.
    fresh: Any = student.model
    fresh.generation_config = stage.student.model.generation_config
    prepare_parts(student, config.trainable, seed=stage.seed)
    weights = {name.removeprefix("student."): value for name, value in learned.items()}
    unknown = student.model.load_state_dict(weights, strict=False).unexpected_keys
    assert not unknown, unknown
    return student
