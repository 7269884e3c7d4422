"""Two optimiser steps of tiny families in which pictures stand before one process and not before the other.

`python -m tests.distributed.family_jobs FOLDER NAME ...` writes the losses and gradients of every family to
FOLDER/NAME.safetensors and prints a line when it has; families.py launches it and compares.
"""

import copy
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import logging

from tests.families.build import randomised
from tests.families.every import load_family
from tests.stages import config, make_stage, response
from vlm_distill import processes
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.batches import TrainItem
from vlm_distill.conformance.facts import measure
from vlm_distill.conformance.probes import Probe, probe_of
from vlm_distill.records import Author
from vlm_distill.training.config import Trainable
from vlm_distill.training.items import TrainOrder
from vlm_distill.training.trainer import Trainer

DONE = "steps taken: "
# The example of the probe before each forward of a step. The first and third forward are those of process 0,
# the others those of process 1: a picture is in a forward whose gradients are not exchanged before those of
# the next are there too, then in one whose gradients are exchanged at once.
STEPS = ((0, 1, 1, 1), (1, 1, 1, 2))
# Weights do not move, so that the second step is not that of weights which a division by rounding has moved.
SETTINGS = {"batch_size": 4, "micro_batch_size": 1, "learning_rate": 1e-30, "max_grad_norm": 1e9}


def treatments(loaded: LoadedModel) -> Mapping[str, Trainable]:
    """Return what learns by name: everything, and the language alone, which may also read no picture."""
    others = [part for part in loaded.adapter.parts if part != "language"]
    alone = {"language": Trainable.model_validate(dict.fromkeys(others, "frozen"))} if others else {}
    return {"all": Trainable(), **alone}


def make_items(probe: Probe) -> list[TrainItem]:
    """Return the items which the trainer takes in the order of STEPS."""
    count = len(STEPS) * len(STEPS[0])
    items: dict[int, TrainItem] = {}
    for step, examples in enumerate(STEPS):
        order = TrainOrder(num_items=count, batch_size=len(examples), seed=1).step(step)
        for place, number in zip(order, examples, strict=True):
            example = probe.examples[number]
            rows = (probe.pairs[(place + shift) % len(probe.pairs)][1] for shift in (0, 2))
            authors: tuple[Author, ...] = ("teacher", "student")
            responses = tuple(
                response(example.id, author, ids) for author, ids in zip(authors, rows, strict=True)
            )
            items[place] = TrainItem(example=example, responses=responses)
    return [items[place] for place in range(count)]


def take_steps(name: str, folder: Path) -> dict[str, Tensor]:
    """Return the losses and gradients of the steps, by treatment, step and parameter."""
    loaded = load_family(name)
    loaded = replace(loaded, adapter=measure(loaded).settled(loaded.adapter))
    teacher = replace(loaded, model=randomised(copy.deepcopy(loaded.model), seed=1))
    probe = probe_of(loaded)
    found = {}
    for kind, trainable in treatments(loaded).items():
        student = replace(loaded, model=copy.deepcopy(loaded.model))
        models = {"student": student, "teacher": teacher}
        given = {"items": make_items(probe), "load_images": probe.load_pictures}
        stage = make_stage(folder / name / kind, **models, **given)
        trainer = Trainer(config(**SETTINGS, trainable=trainable), stage, lambda _: None)
        trainer.optimizer.zero_grad = lambda: None
        trainer.module.register_forward_pre_hook(seed)
        for step in range(len(STEPS)):
            loss = trainer.optimizer_step()["loss_sum"]
            found[f"{kind} {step} loss"] = torch.tensor(loss, dtype=torch.float64)
            for parameter, value in student.model.named_parameters():
                if value.grad is not None:
                    found[f"{kind} {step} {parameter}"] = value.grad.clone()
                value.grad = None
    return found


def seed(*_: object) -> None:
    """Drop the same out of every forward, whichever process it is in."""
    torch.manual_seed(0)


def be_quiet() -> None:
    """Keep what transformers says of tiny models from the output."""
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def main(folder: Path, names: list[str]) -> None:
    be_quiet()
    processes.start("cpu")
    for name in names:
        found = take_steps(name, folder)
        if processes.is_main():
            save_file(found, folder / f"{name}.safetensors")
            print(f"{DONE}{name}", flush=True)
    processes.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
