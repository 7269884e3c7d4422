"""One optimiser step, in DDP and with fully sharded weights.

`python -m tests.distributed.training_jobs FOLDER` writes the loss and the gradients of every case to
FOLDER/KIND/CASE.json and FOLDER/KIND/CASE.safetensors.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.stages import config, make_items, make_stage
from tests.tiny import fresh, tiny_llava, tiny_text_model
from vlm_distill import processes
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.files import write_json
from vlm_distill.losses import DistiLLM2, SeqKD
from vlm_distill.models.feature_store import FeatureStore, VisionCacheConfig
from vlm_distill.models.lora import Lora
from vlm_distill.models.vision_cache import with_vision_cache
from vlm_distill.training.config import Trainable
from vlm_distill.training.step import Stage
from vlm_distill.training.trainer import Trainer

OBJECTIVES = {
    "distillm2": DistiLLM2(),
    "distillm2_token": DistiLLM2(reduction="token"),
    "seqkd": SeqKD(),
    "seqkd_sequence": SeqKD(reduction="sequence"),
}
MODELS: Mapping[str, Callable[[int, int], LoadedModel]] = {
    "text_untied": lambda seed, width: tiny_text_model(seed, hidden_size=width),
    "llava_tied": lambda seed, width: tiny_llava(seed, hidden_size=width),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What is trained on how, in one optimiser step of `batch_size` prompts over all processes."""

    model: str
    objective: str
    batch_size: int
    micro_batch_size: int | None
    micro_batch_tokens: int | None = None
    dtype: torch.dtype = torch.float64
    caches_features: bool = False
    trainable: Trainable = field(default_factory=Trainable)
    # How many images the prompts have, over and over; None for what the model reads.
    images: tuple[int, ...] | None = None

    def __str__(self) -> str:
        sizes = f"{self.batch_size}-{self.micro_batch_size or f'{self.micro_batch_tokens}_tokens'}"
        sizes += "-cached" if self.caches_features else ""
        sizes += "" if self.images is None else f"-{''.join(map(str, self.images))}-{self._treatments()}"
        return f"{self.model}-{self.objective}-{sizes}-{self.dtype}".replace("torch.", "")

    def _treatments(self) -> str:
        found = (getattr(self.trainable, part) for part in Trainable.model_fields)
        return "_".join(one if isinstance(one, str) else one.kind for one in found)

    def stage(self, folder: Path) -> Stage:
        images = self.images or ((0,) if self.model.startswith("text") else (1,))
        every = [make_items(self.batch_size, num_images=number) for number in images]
        student, teacher = (fresh(MODELS[self.model](seed, width)) for seed, width in ((0, 16), (1, 32)))
        student.model.to(self.dtype)
        teacher.model.to(self.dtype)
        if self.caches_features:
            cache = FeatureStore(VisionCacheConfig(), folder=None, log=print)
            student, teacher = with_vision_cache(student, cache), with_vision_cache(teacher, cache)
        return make_stage(
            folder / str(self),
            student=student,
            teacher=teacher,
            objective=OBJECTIVES[self.objective].build(),
            items=[every[index % len(every)][index] for index in range(self.batch_size)],
        )


# Among them, for each kind and model, one with which the two processes need unequal numbers of forwards.
MICRO_BATCH_TOKENS = (80, 115, 140)


def cases(*, batch_size: int, micro_batch_sizes: tuple[int, ...]) -> list[Case]:
    """Return every model with every objective and split in float64, and one of each model in float32.

    One more takes the features of a frozen tower from a cache.
    In float64 a wrong denominator cannot hide behind rounding.
    """
    return [
        *(
            Case(model=model, objective=objective, batch_size=batch_size, micro_batch_size=size)
            for model in MODELS
            for objective in OBJECTIVES
            for size in micro_batch_sizes
        ),
        *(
            Case(
                model=model,
                objective="distillm2",
                batch_size=batch_size,
                micro_batch_size=2,
                dtype=torch.float32,
            )
            for model in MODELS
        ),
        Case(
            model="llava_tied",
            objective="distillm2",
            batch_size=batch_size,
            micro_batch_size=2,
            caches_features=True,
            trainable=Trainable(vision="frozen"),
        ),
        *(
            Case(
                model=model,
                objective="distillm2",
                batch_size=batch_size,
                micro_batch_size=None,
                micro_batch_tokens=tokens,
            )
            for model in MODELS
            for tokens in MICRO_BATCH_TOKENS
        ),
    ]


LORA = Lora(rank=2, alpha=4)
# The second: in a forward whose gradients are not exchanged before those of the next ones are there too.
IMAGES = {"in one process": (1, 0), "in a first forward of the other": (0, 1, 0, 0, 0, 0), "nowhere": (0,)}


def mixed_cases() -> list[Case]:
    """Return every treatment of the parts where only some prompts have images, and some where none has."""
    treatments = [
        Trainable(vision=vision, projector=projector, language=language)
        for vision, projector, language in product(("frozen", "full", LORA), repeat=3)
        if {vision, projector, language} != {"frozen"}
    ]
    return [
        Case(
            model="llava_tied",
            objective="distillm2",
            batch_size=6,
            micro_batch_size=1,
            trainable=trainable,
            images=images,
            caches_features=trainable.vision == "frozen" and trainable.projector == "full",
        )
        for trainable in treatments
        for images in IMAGES.values()
        if any(images) or trainable.language == "full"
    ]


CASES = {
    # Seven prompts are four and three in two processes, or four and three forwards.
    "ddp": [*cases(batch_size=7, micro_batch_sizes=(7, 2, 1)), *mixed_cases()],
    # Sharded forwards are collective, so every process needs as many of them.
    "fsdp": cases(batch_size=6, micro_batch_sizes=(6, 2)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The loss of an optimiser step over all processes, and its gradients by parameter name."""

    loss: float
    gradients: dict[str, Tensor]


def step(case: Case, folder: Path) -> Found:
    """Take the step; a clip far above the norm leaves the gradients alone."""
    stage = case.stage(folder)
    sizes = {"batch_size": case.batch_size, "micro_batch_size": case.micro_batch_size}
    sizes["micro_batch_tokens"] = case.micro_batch_tokens
    trainer = Trainer(config(**sizes, max_grad_norm=1e9, trainable=case.trainable), stage, print)
    trainer.optimizer.zero_grad = lambda: None
    loss = trainer.optimizer_step()["loss_sum"]
    found = {name: value.grad for name, value in stage.student.model.named_parameters()}
    return Found(loss=loss, gradients={name: whole(grad) for name, grad in found.items() if grad is not None})


def whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def shard(_: Accelerator, module: nn.Module, optimizer: torch.optim.AdamW) -> tuple[nn.Module, Any]:
    """Shard every layer, and the rest with the head, over the processes: what accelerate does on GPUs.

    On a CPU accelerate shards nothing.
    """
    for list_of_layers in [child for child in module.modules() if isinstance(child, nn.ModuleList)]:
        for layer in list_of_layers:
            fully_shard(layer)
    fully_shard(module)
    assert all(isinstance(parameter, DTensor) for parameter in module.parameters())
    # No group of these tests decays.
    settings = {name: optimizer.defaults[name] for name in ("lr", "betas")}
    return module, torch.optim.AdamW(module.parameters(), **settings, weight_decay=0.0)


def take_all(kind: str, folder: Path) -> None:
    for case in CASES[kind]:
        found = step(case, folder)
        if processes.is_main():
            write_json(folder / f"{case}.json", found.loss)
            save_file(found.gradients, folder / f"{case}.safetensors")


def main(folder: Path) -> None:
    processes.start("cpu")
    take_all("ddp", folder / "ddp")
    Accelerator.prepare = shard
    take_all("fsdp", folder / "fsdp")
    processes.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
