"""A training stage: from a loaded student and items to a model folder.

It is skipped when it is done and resumed when it was killed.
"""

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.errors import DataError
from vlm_distill.files import read_json, write_json
from vlm_distill.models.load import load_model
from vlm_distill.models.lora import merge_lora
from vlm_distill.models.save import save_model
from vlm_distill.processes import wait
from vlm_distill.progress import Log
from vlm_distill.training.config import TrainConfig
from vlm_distill.training.parts import prepare_parts
from vlm_distill.training.step import Stage
from vlm_distill.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A finished stage: model folder, optimiser steps, trained student response tokens, objective's state."""

    model: Path
    steps: int
    tokens: int
    objective: dict[str, Any]


def finished(folder: Path, *, key: str) -> Trained | None:
    """Return the result of a stage that is complete under `key`, None where it still has to run.

    Raises:
        DataError: the folder holds the result of another student, teacher, data set or config.
    """
    path = folder / "stage.json"
    if not path.is_file():
        return None
    found = read_json(path)
    if found["key"] != key:
        raise DataError(
            f"{folder}: holds a student that was trained from another start, with other data or with another "
            "config; give the run another `output`, or delete this folder to train it again"
        )
    _remove_checkpoints(folder)  # a kill may have come before
    return Trained(
        model=folder / "model", steps=found["steps"], tokens=found["tokens"], objective=found["objective"]
    )


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
        model=stage.folder / "model",
        steps=trainer.step,
        tokens=trainer.trained_tokens,
        objective=stage.objective.state_dict(),
    )
    learned = trainer.learned() if trainer.is_sharded else {}
    if trainer.accelerator.is_main_process:
        student = _whole(config, stage, learned) if trainer.is_sharded else stage.student
        merge_lora(student)
        save_model(student, trained.model)
        result = {
            "key": stage.key,
            "steps": trained.steps,
            "tokens": trained.tokens,
            "objective": trained.objective,
            "left_out": left_out,
            "too_long": too_long,
            "seconds": {"responses": seconds_before, "training": time.monotonic() - started},
        }
        write_json(stage.folder / "stage.json", result)
        _remove_checkpoints(stage.folder)
    wait()
    log(f"{stage.label}: {trained.tokens:,} response tokens trained in {time.monotonic() - started:.0f} s")
    return trained


def _remove_checkpoints(folder: Path) -> None:
    for name in ("checkpoints", "best"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _whole(config: TrainConfig, stage: Stage, learned: dict[str, Any]) -> LoadedModel:
    """Return a student in one piece: its start, from where it was loaded, with the weights that learned."""
    loaded = load_model(stage.student.path, LoadOptions(trust_remote_code=stage.trust_remote_code))
    student = replace(loaded, tokenizer=stage.student.tokenizer, processor=stage.student.processor)
    # It may stop at its teacher's stop ids as well by now.
    fresh: Any = student.model
    fresh.generation_config = stage.student.model.generation_config
    prepare_parts(student, config.trainable, seed=stage.seed)
    weights = {name.removeprefix("student."): value for name, value in learned.items()}
    unknown = student.model.load_state_dict(weights, strict=False).unexpected_keys
    assert not unknown, unknown
    return student
