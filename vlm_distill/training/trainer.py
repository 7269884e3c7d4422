"""The training loop, explicit, on accelerate: the only file that imports it.

The same loop trains text and vision-language students with every objective: it knows batches, an objective
and two models. What is trained on (items), what is optimised (losses) and where models come from (adapters)
are elsewhere.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.batches import pad_responses
from vlm_distill.errors import AdapterError, DataError
from vlm_distill.files import append_jsonl, atomic_path
from vlm_distill.forward import response_hidden
from vlm_distill.losses import Objective, ObjectiveLoss, Rows, explain_non_finite
from vlm_distill.progress import progress
from vlm_distill.training.checkpoint import Checkpoint, load_latest, save_checkpoint
from vlm_distill.training.config import TrainConfig
from vlm_distill.training.items import ImageLoader, Plan, TrainBatch, TrainItem, collate

PRECISIONS = {"float32": "no", "bf16": "bf16"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """What one training stage works on.

    `vocabulary` is the id range that both models define, `key` names inputs and config.
    """

    student: LoadedModel
    teacher: LoadedModel | None
    vocabulary: slice
    objective: Objective
    items: Sequence[TrainItem]
    load_images: ImageLoader
    folder: Path
    key: str
    label: str
    seed: int
    round: int = 1
    num_rounds: int = 1


class StepModule(nn.Module):
    """One micro-batch from prompts to loss.

    All in one forward, so that wrappers (DDP, FSDP) see body and head together.
    """

    def __init__(self, stage: Stage, byte_budget: int) -> None:
        super().__init__()
        self.student = stage.student.model
        self._stage = stage
        self._byte_budget = byte_budget

    def forward(self, batch: TrainBatch, denominators: Tensor) -> ObjectiveLoss:
        student, teacher = model_rows(self._stage, batch)
        return self._stage.objective.loss(student, teacher, batch.responses, denominators, self._byte_budget)


def model_rows(stage: Stage, batch: TrainBatch) -> tuple[Rows, Rows | None]:
    """Return what the loss core reads of both models: hidden states of the response tokens and heads."""
    teacher = None
    if stage.teacher is not None and batch.teacher_prompts is not None:
        with torch.no_grad():
            teacher = _rows(stage.teacher, batch, batch.teacher_prompts, stage.vocabulary)
    return _rows(stage.student, batch, batch.student_prompts, stage.vocabulary), teacher


def _rows(loaded: LoadedModel, batch: TrainBatch, prompts: Any, vocabulary: slice) -> Rows:
    hidden = response_hidden(loaded, prompts, batch.responses)
    return Rows(hidden=hidden, head=loaded.adapter.head(loaded.model), vocabulary=vocabulary)


def freeze(loaded: LoadedModel, config: TrainConfig) -> list[nn.Parameter]:
    """Set which parameters learn, by component; return the learning ones.

    Raises:
        AdapterError: nothing would learn.
    """
    frozen = [part for part, treatment in config.trainable.model_dump().items() if treatment == "frozen"]
    prefixes = tuple(prefix for part in frozen for prefix in loaded.adapter.parts.get(part, ()))
    for name, parameter in loaded.model.named_parameters():
        parameter.requires_grad_(not (prefixes and name.startswith(prefixes)))
    learning = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
    if not learning:
        raise AdapterError(
            f"train.trainable: every component of {loaded.path} is frozen; let at least one learn"
        )
    return learning


def num_steps(config: TrainConfig, items: Sequence[TrainItem], *, seed: int) -> int:
    """Return how many optimiser steps the stage lasts; the first step that reaches a token budget ends it."""
    if config.steps is not None:
        return config.steps
    if config.epochs is not None:
        return max(1, math.ceil(config.epochs * len(items) / config.batch_size))
    assert config.tokens is not None
    if not any(item.num_tokens for item in items):
        raise DataError("training items: every response is empty, so a token budget can never be met")
    done = 0
    for step, indices in enumerate(
        Plan(num_items=len(items), batch_size=config.batch_size, seed=seed).steps(), start=1
    ):
        done += sum(items[index].num_tokens for index in indices)
        if done >= config.tokens:
            return step
    raise AssertionError("the plan has no end")


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Return the rate of optimiser step `step` (from 0): linear warm-up, then cosine to 0, or constant."""
    warmup = math.ceil(config.warmup_ratio * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


class Trainer:
    """The state of one running stage: wrapped module, optimiser, and the step it has reached."""

    def __init__(self, config: TrainConfig, stage: Stage, log: Callable[[str], None]) -> None:
        self.config, self.stage, self.log = config, stage, log
        on_cpu = stage.student.device.type == "cpu"
        self.accelerator = Accelerator(mixed_precision=PRECISIONS[config.precision], cpu=on_cpu)
        freeze(stage.student, config)
        stage.student.model.train()
        self.total = num_steps(config, stage.items, seed=stage.seed)
        self.plan = Plan(num_items=len(stage.items), batch_size=config.batch_size, seed=stage.seed)
        module = StepModule(stage, config.loss_byte_budget)
        optimizer = torch.optim.AdamW(
            _decay_groups(module, config.weight_decay), lr=config.learning_rate, betas=config.betas
        )
        self.module, self.optimizer = self.accelerator.prepare(module, optimizer)
        self.step = self.trained_tokens = 0
        stage.objective.start_round(stage.round, self.total, num_rounds=stage.num_rounds)
        self._resume()

    def run(self) -> None:
        """Train to the last step, writing checkpoints and metrics on the way."""
        started, tokens_before = time.monotonic(), self.trained_tokens
        remaining = range(self.step, self.total)
        pending: list[dict[str, float]] = []
        for step in progress(remaining, total=len(remaining), label=self.stage.label):
            metrics = self.optimizer_step(step)
            self.step = step + 1
            pending.append(metrics)
            if self.step % self.config.log_every == 0 or self.step == self.total:
                seconds = time.monotonic() - started
                self._write_metrics(pending, rate=(self.trained_tokens - tokens_before) / seconds)
                pending = []
            if self.step % self.config.checkpoint_every == 0 and self.step < self.total:
                self._save()
        self.stage.student.model.eval()

    def optimizer_step(self, step: int) -> dict[str, float]:
        """Run one optimiser step over this process's micro-batches; return metrics reduced over processes."""
        self._seed(step)
        chunks = self._micro_batches(step)
        denominators = self._denominators(chunks)
        rate = learning_rate(self.config, step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        sums: dict[str, Tensor] = {}
        for number, chunk in enumerate(chunks, start=1):
            batch = self._collate(chunk)
            context = nullcontext() if number == len(chunks) else self.accelerator.no_sync(self.module)
            with context:
                result = self.module(batch, denominators)
                # Data parallel wrappers average gradients over processes; the denominator is already global.
                self.accelerator.backward(result.loss * self.accelerator.num_processes)
            for name, value in {**result.metrics, "tokens": batch.responses.mask.sum()}.items():
                sums[name] = sums[name] + value if name in sums else value
        reduced = self._reduce(sums)
        norm = float(self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.max_grad_norm))
        if not (math.isfinite(reduced["loss_sum"]) and math.isfinite(norm)):
            # Before the step: the weights of the last checkpoint and of this moment stay usable.
            raise self._explain(chunks)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.stage.objective.update(reduced)
        self.trained_tokens += int(reduced["tokens"])
        return reduced | {"learning_rate": rate, "grad_norm": norm}

    def _seed(self, step: int) -> None:
        """Make random numbers a function of the step: a resumed run draws what an undisturbed one does."""
        process, num_processes = self.accelerator.process_index, self.accelerator.num_processes
        torch.manual_seed(self.stage.seed * 1_000_003 + step * num_processes + process)

    @torch.no_grad()
    def _explain(self, chunks: Sequence[Sequence[TrainItem]]) -> DataError:
        """Return the error that names what made the loss infinite, if this process holds it."""
        budget, where = self.config.loss_byte_budget, f"{self.stage.label}, step {self.step + 1}"
        self._seed(self.step)
        for chunk in chunks:
            batch = self._collate(chunk)
            student, teacher = model_rows(self.stage, batch)
            names = [f"{item.example.id!r} by the {one.author}" for item in chunk for one in item.responses]
            found = explain_non_finite(student, teacher, batch.responses, names=names, byte_budget=budget)
            if found is not None:
                return DataError(f"{where}: {found}")
        return DataError(
            f"{where}: loss or gradient is not finite although these logits are; lower the learning rate"
        )

    def _micro_batches(self, step: int) -> list[list[TrainItem]]:
        """Return this process's share of the step, cut into forwards."""
        accelerator, size = self.accelerator, self.config.micro_batch_size
        indices = self.plan.step(step)[accelerator.process_index :: accelerator.num_processes]
        if not indices:
            raise DataError(
                f"train.batch_size: expected at least one prompt per process, got {self.config.batch_size}"
            )
        return [
            [self.stage.items[index] for index in indices[i : i + size]] for i in range(0, len(indices), size)
        ]

    def _denominators(self, chunks: Sequence[Sequence[TrainItem]]) -> Tensor:
        """Count tokens and responses per term, before the first forward.

        Over the whole optimiser step and all processes.
        """
        counts = [
            self.stage.objective.counts(pad_responses([item.responses for item in chunk])) for chunk in chunks
        ]
        total = torch.stack(counts).sum(dim=0).to(self.accelerator.device, torch.float32)
        return self.accelerator.reduce(total, "sum") if self.accelerator.num_processes > 1 else total

    def _collate(self, chunk: Sequence[TrainItem]) -> TrainBatch:
        stage = self.stage
        teacher = stage.teacher if stage.objective.needs_teacher else None
        batch = collate(chunk, student=stage.student, teacher=teacher, load_images=stage.load_images)
        device, prompts = self.accelerator.device, batch.teacher_prompts
        return TrainBatch(
            student_prompts=batch.student_prompts.to(device),
            teacher_prompts=prompts.to(teacher.device)
            if teacher is not None and prompts is not None
            else None,
            responses=batch.responses.to(device),
        )

    def _reduce(self, sums: dict[str, Tensor]) -> dict[str, float]:
        names = sorted(sums)
        stacked = torch.stack([sums[name].detach().to(torch.float64) for name in names])
        if self.accelerator.num_processes > 1:
            stacked = self.accelerator.reduce(stacked, "sum")
        return dict(zip(names, stacked.tolist(), strict=True))

    def _write_metrics(self, pending: Sequence[dict[str, float]], *, rate: float) -> None:
        names = pending[-1]
        # Sums add up over the steps since the last line; rate and norm are those of the last step.
        merged = {name: sum(metrics[name] for metrics in pending) for name in names}
        last = {name: pending[-1][name] for name in ("learning_rate", "grad_norm")}
        row: dict[str, Any] = {
            "step": self.step,
            "steps": self.total,
            "round": self.stage.round,
            "tokens": self.trained_tokens,
        }
        row |= last | {"tokens_per_second": rate} | self.stage.objective.metrics_view(merged)
        if self.accelerator.is_main_process:
            append_jsonl(self.stage.folder / "metrics.jsonl", [row])

    def _save(self) -> None:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights: dict[str, Any] = get_model_state_dict(self.module, options=options)
        optimizer = get_optimizer_state_dict(self.module, _inner(self.optimizer), options=options)
        if self.accelerator.is_main_process:
            state = {"objective": self.stage.objective.state_dict(), "trained_tokens": self.trained_tokens}
            checkpoint = Checkpoint(step=self.step, weights=weights, optimizer=optimizer, state=state)
            save_checkpoint(
                self.stage.folder / "checkpoints",
                checkpoint,
                key=self.stage.key,
                keep_last=self.config.keep_last,
            )
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        found = load_latest(self.stage.folder / "checkpoints", key=self.stage.key, log=self.log)
        metrics = self.stage.folder / "metrics.jsonl"
        if found is None:
            metrics.unlink(missing_ok=True)
            return
        options = StateDictOptions(full_state_dict=True)
        weights: dict[str, Any] = found.weights
        set_model_state_dict(self.module, weights, options=options)
        # Parameters that the forward never uses (a tower's norm after the chosen layer) have no moments.
        lenient = StateDictOptions(full_state_dict=True, strict=False)
        set_optimizer_state_dict(self.module, _inner(self.optimizer), found.optimizer, options=lenient)
        self.stage.objective.load_state_dict(found.state["objective"])
        self.step, self.trained_tokens = found.step, found.state["trained_tokens"]
        _drop_metrics_after(metrics, self.step)
        self.log(f"{self.stage.label}: continuing after step {self.step} of {self.total}")


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def _decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Norms and biases are not decayed."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in learning if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in learning if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def _drop_metrics_after(path: Path, step: int) -> None:
    """Drop log lines of steps that will be done again, and a last line that a kill cut short."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["step"] <= step:
            kept.append(row)
    with atomic_path(path) as temporary:
        temporary.touch()
        append_jsonl(temporary, kept)
