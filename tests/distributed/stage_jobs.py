"""A training stage that is left after three of its four steps and started again.

`python -m tests.distributed.stage_jobs KIND MODEL FOLDER`, with KIND ddp or fsdp; what the trainer refuses is
printed.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from tests.distributed.training_jobs import Case, shard
from tests.stages import config
from vlm_distill import processes
from vlm_distill.adapters.adapter import LoadOptions
from vlm_distill.errors import UserError
from vlm_distill.models.load import load_model
from vlm_distill.training.config import Trainable
from vlm_distill.training.step import Stage
from vlm_distill.training.train import train
from vlm_distill.training.trainer import Trainer

SETTINGS = config(steps=4, batch_size=6, micro_batch_size=2, checkpoint_every=2)
LORA = Trainable.model_validate({"vision": "frozen", "language": {"kind": "lora", "rank": 2, "alpha": 4}})


def stage_of(model: str, start: Path, folder: Path) -> Stage:
    """Return a stage whose student lies in `start`; in micro-batches of it no response is longer than 1."""
    case = Case(model=model, objective="distillm2", batch_size=6, micro_batch_size=2, dtype=torch.float32)
    return replace(case.stage(folder), student=load_model(str(start), LoadOptions()), folder=folder)


def settings_of(treatment: str) -> object:
    return SETTINGS if treatment == "full" else SETTINGS.model_copy(update={"trainable": LORA})


def main(kind: str, model: str, treatment: str, folder: Path) -> None:
    processes.start("cpu")
    if kind == "fsdp":
        Accelerator.prepare = shard
    start, target, settings = folder / "start", folder / kind, settings_of(treatment)
    interrupted = Trainer(settings, stage_of(model, start, target), print)
    for _ in range(3):
        interrupted.optimizer_step()
        if interrupted.step == 2:
            interrupted._save(target / "checkpoints", keep_last=2)
    train(settings, stage_of(model, start, target), log=print)
    if kind == "fsdp":
        for changes in ({"batch_size": 5}, {"evaluate_every": 1}):
            stage = replace(stage_of(model, start, folder / "refused"), evaluate=dict)
            try:
                Trainer(SETTINGS.model_copy(update=changes), stage, print)
            except UserError as error:
                print(f"refused: {error}", flush=True)
    processes.stop()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
