"""The training loop, explicit, on accelerate.

The same loop trains text and vision-language students with every objective: it knows batches, an objective
and two models. What is trained on (items, responses), what is optimised (losses), which parameters learn
(parts) and where models come from (adapters) are elsewhere.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule

from vlm_distill.batches import TrainItem, pad_responses
from vlm_distill.errors import ConfigError, DataError, did_you_mean
from vlm_distill.forward import shares_prefixes
from vlm_distill.losses import explain_non_finite
from vlm_distill.models.gradient_checkpointing import keep_activations, recompute_activations
from vlm_distill.models.vision_cache import without_vision_cache
from vlm_distill.processes import wait
from vlm_distill.progress import Log, progress
from vlm_distill.stopping import end, is_asked
from vlm_distill.training.budget import Budget, learning_rate
from vlm_distill.training.checkpoint import Checkpoint, drop_later, load_latest, save_checkpoint
from vlm_distill.training.checks import check_sharded, check_stage
from vlm_distill.training.config import TrainConfig
from vlm_distill.training.early_stop import EarlyStop
from vlm_distill.training.items import TrainBatch, TrainOrder, collate
from vlm_distill.training.metrics import THROUGHPUT, append_row, drop_rows_after, merge_steps
from vlm_distill.training.micro_batches import count_prompt_tokens, cutter, padding_counts, sort_lengths
from vlm_distill.training.parts import (
    decay_groups,
    moving_statistics,
    prepare_parts,
    training_mode,
)
from vlm_distill.training.responses import Responses
from vlm_distill.training.step import HELD_OUT_KL, Stage, StepModule, model_rows

PRECISIONS = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}
# Only what learns is saved: the rest is the student that the stage started from, which its key names.
LEARNING = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
# Parameters that the forward never uses (a tower's norm after the chosen layer) have no moments.
LENIENT = StateDictOptions(full_state_dict=True, ignore_frozen_params=True, strict=False)
SMALLEST_SCALE = 2.0**-10
# How many processes a signal has asked to end; reduced with the metrics, it costs no message of its own.
ASKED = "asked_to_end"


class Trainer:
    """The state of one running stage: wrapped module, optimiser, and the step it has reached."""

    def __init__(self, config: TrainConfig, stage: Stage, log: Log) -> None:
        self.config, self.stage, self.log = config, stage, log
        prepare_parts(stage.student, config.trainable, seed=stage.seed, log=log)
        self.accelerator = _accelerator(config, stage)
        if config.gradient_checkpointing:
            recompute_activations(stage.student.model)
        training_mode(stage.student, config.trainable)
        self.budget = Budget.of(config, num_items=len(stage.items))
        module = StepModule(stage, config.loss_byte_budget)
        self.statistics = moving_statistics(module)
        groups = decay_groups(module.named_parameters(), config.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)
        self.module, self.optimizer = self.accelerator.prepare(module, optimizer)
        self.is_sharded = module.is_sharded = isinstance(self.module, FSDPModule)
        processes = self.accelerator.process_index, self.accelerator.num_processes
        gather = gather_object if processes[1] > 1 else list
        self.responses = Responses(
            stage=stage, process_index=processes[0], num_processes=processes[1], gather=gather
        )
        prompts = count_prompt_tokens(config, stage, processes=processes, gather=gather)
        self.shares = shares_prefixes(stage.student, in_one_forward=self.is_sharded)
        self.cutter = cutter(config, stage, prompts=prompts, shares=self.shares)
        lengths = sort_lengths(stage.items, prompts) if config.group_by_length else None
        count, size = len(stage.items), config.batch_size
        self.plan = TrainOrder(num_items=count, batch_size=size, seed=stage.seed, lengths=lengths)
        self.early_stop = EarlyStop(patience=config.patience)
        self.step = self.trained_tokens = 0
        self.window: list[dict[str, float]] = []  # of the steps since the last line of the log
        self.is_asked_to_end = False
        stage.objective.start_round(stage.round, num_rounds=stage.num_rounds)
        check_stage(config, stage)
        if self.is_sharded:
            check_sharded(config, stage, num_processes=processes[1])
            # Weights are whole inside the wrapped forward only, so the tower runs there.
            if stage.student.vision_cache is not None:
                log(f"{stage.label}: weights are sharded, so features of images are not kept")
            self.stage = replace(stage, student=without_vision_cache(stage.student))
        self._resume()

    @property
    def fraction(self) -> float:
        """The used share of the stage's budget."""
        return self.budget.fraction(step=self.step, tokens=self.trained_tokens)

    @property
    def ended(self) -> bool:
        return self.fraction >= 1 or self.early_stop.stops

    @property
    def num_steps_left(self) -> int | None:
        """How many steps the rest of the budget will take; an estimate for tokens, None without any idea."""
        if self.budget.steps is not None:
            return self.budget.steps - self.step
        assert self.budget.tokens is not None
        num_tokens = sum(item.num_tokens for item in self.stage.items) * self.config.batch_size
        left = max(0, self.budget.tokens - self.trained_tokens)
        return math.ceil(left * len(self.stage.items) / num_tokens) if num_tokens else None

    def run(self) -> None:
        """Train to the end of the budget, writing checkpoints and metrics on the way.

        Where a signal has asked one of the processes to end, all do so after the step, with a checkpoint.
        """
        started, tokens_before = time.monotonic(), self.trained_tokens
        for _ in progress(self._steps(), label=self.stage.label, total=self.num_steps_left):
            self.window.append(self.optimizer_step())
            evaluated = self._evaluate()
            if evaluated or self.ended or self.step % self.config.log_every == 0:
                rate = (self.trained_tokens - tokens_before) / (time.monotonic() - started)
                self._log({THROUGHPUT: rate, **evaluated})
            if not self.ended and (self.is_asked_to_end or self.step % self.config.checkpoint_every == 0):
                self._save(self.stage.folder / "checkpoints", self.config.keep_last)
            if not self.ended and self.is_asked_to_end:
                self._end()
        self._finish()

    def _end(self) -> NoReturn:
        steps, share = self.budget.steps, f"{self.fraction:.0%} of {self.budget}"
        done = f"{self.step:,} of {steps:,}" if steps is not None else f"{self.step:,} ({share})"
        folder = self.stage.folder / "checkpoints"
        end(f"{self.stage.label}: stopped after step {done}; checkpoint in {folder}")

    def _steps(self) -> Iterator[int]:
        while not self.ended:
            yield self.step

    def optimizer_step(self) -> dict[str, float]:
        """Run one optimiser step over this process's micro-batches; return metrics reduced over processes."""
        step = self.step
        drawn = self.responses.items(step, self.plan.step(step))
        chunks = self._micro_batches(drawn.items)
        # After the responses, which draw random numbers of their own.
        self._seed(step)
        denominators, num_tokens = self._denominators(chunks)
        after = self.budget.fraction(step=step + 1, tokens=self.trained_tokens + num_tokens)
        rate = learning_rate(self.config, before=self.fraction, after=after)
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
            padding = padding_counts(batch.student_prompts, batch.responses, shares=self.shares)
            for name, value in (result.metrics | padding).items():
                sums[name] = sums[name] + value if name in sums else value
        sums[ASKED] = torch.tensor(float(is_asked()), device=self.accelerator.device)
        reduced = self._reduce(sums)
        self.is_asked_to_end = reduced.pop(ASKED) > 0
        norm = float(self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.max_grad_norm))
        self._require_finite(reduced["loss_sum"], norm, chunks)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step, self.trained_tokens = step + 1, self.trained_tokens + num_tokens
        self.stage.objective.update(reduced, fraction=min(1.0, self.fraction))
        if self.stage.objective.source.samples:
            reduced |= {"fresh_sum": float(drawn.is_on_policy), "fresh_count": 1.0}
        return reduced | {"learning_rate": rate, "grad_norm": norm}

    def _seed(self, step: int) -> None:
        """Make random numbers a function of the step: a resumed run draws what an undisturbed one does."""
        process, num_processes = self.accelerator.process_index, self.accelerator.num_processes
        torch.manual_seed(self.stage.seed * 1_000_003 + step * num_processes + process)

    def _require_finite(self, loss: float, norm: float, chunks: Sequence[Sequence[TrainItem]]) -> None:
        """Raise before the optimiser's step: the weights of the last checkpoint and of now stay usable."""
        scaler = self.accelerator.scaler
        # A scaler finds its scale by overflows: it leaves out such a step and halves itself.
        searching = scaler is not None and math.isfinite(loss) and scaler.get_scale() > SMALLEST_SCALE
        if not (math.isfinite(loss) and math.isfinite(norm)) and not searching:
            raise self._explain(chunks)

    @torch.no_grad()
    def _explain(self, chunks: Sequence[Sequence[TrainItem]]) -> DataError:
        """Return the error that names what made the loss infinite, if this process holds it."""
        budget, where = self.config.loss_byte_budget, f"{self.stage.label}, step {self.step + 1}"
        if self.is_sharded:
            # Weights are whole inside the wrapped forward only.
            return DataError(f"{where}: loss or gradient is not finite; try a lower learning rate")
        self._seed(self.step)
        for chunk in chunks:
            batch = self._collate(chunk)
            names = [f"{item.example.id!r} by the {one.author}" for item in chunk for one in item.responses]
            with self.accelerator.autocast():
                student, teacher = model_rows(self.stage, batch)
                found = explain_non_finite(student, teacher, batch.responses, names=names, byte_budget=budget)
            if found is not None:
                return DataError(f"{where}: {found}")
        return DataError(
            f"{where}: loss or gradient is not finite although these logits are; lower the learning rate"
        )

    def _micro_batches(self, items: Sequence[TrainItem]) -> Sequence[Sequence[TrainItem]]:
        """Cut this process's share of the step into forwards."""
        if not items:
            raise DataError(
                f"{self.stage.label}, step {self.step + 1}: a process has nothing to train on; expected a "
                f"train.batch_size of at least one prompt per process and usable responses, got "
                f"{self.config.batch_size} for {self.accelerator.num_processes} process(es)"
            )
        chunks = self.cutter.cut(items)
        if self.is_sharded and self.config.micro_batch_tokens is not None:
            # Sharded forwards wait for each other, so every process takes as many as the one with the most.
            chunks = self.cutter.cut(items, at_least=max(self.responses.gather([len(chunks)])))
        return chunks

    def _denominators(self, chunks: Sequence[Sequence[TrainItem]]) -> tuple[Tensor, int]:
        """Count what each term divides by, and response tokens, before the first forward.

        Over the whole optimiser step and all processes.
        """
        batches = [pad_responses([item.responses for item in chunk]) for chunk in chunks]
        counts = [self.stage.objective.counts(batch) for batch in batches]
        tokens = torch.stack([batch.mask.sum() for batch in batches]).sum()
        total = torch.cat([torch.stack(counts).sum(dim=0).to(torch.float64), tokens[None].to(torch.float64)])
        if self.accelerator.num_processes > 1:
            total = self.accelerator.reduce(total.to(self.accelerator.device), "sum")
        denominators = total[:-1].to(self.accelerator.device, torch.float32)
        return denominators, int(total[-1])

    def _collate(self, chunk: Sequence[TrainItem]) -> TrainBatch:
        stage = self.stage
        cache = stage.cache if stage.objective.needs_teacher else None
        teacher = stage.teacher if stage.objective.needs_teacher and cache is None else None
        batch = collate(
            chunk,
            student=stage.student,
            teacher=teacher,
            load_images=stage.load_images,
            reference_log_probs=stage.reference_log_probs if stage.objective.needs_reference_model else None,
            cache=cache,
        )
        return batch.to(self.accelerator.device, teacher_device=teacher.device if teacher else None)

    def _reduce(self, sums: dict[str, Tensor]) -> dict[str, float]:
        names = sorted(sums)
        stacked = torch.stack([sums[name].detach().to(torch.float64) for name in names])
        if self.accelerator.num_processes > 1:
            stacked = self.accelerator.reduce(stacked, "sum")
        return dict(zip(names, stacked.tolist(), strict=True))

    def _evaluate(self) -> dict[str, float]:
        """Measure the live student where it is due; return what was found."""
        every, measure = self.config.evaluate_every, self.stage.evaluate
        if every is None or measure is None or not (self.fraction >= 1 or self.step % every == 0):
            return {}
        found = measure()
        self.stage.objective.source.observe_validation(found[HELD_OUT_KL])
        if self.early_stop.observe(found[HELD_OUT_KL], step=self.step) and self.early_stop.patience:
            self._save(self.stage.folder / "best", keep_last=1)
        return found

    def _finish(self) -> None:
        """Leave the student as the stage's result, in eval mode."""
        if self.early_stop.patience is not None and self.early_stop.best_step < self.step:
            best = load_latest(self.stage.folder / "best", key=self.stage.key, log=self.log)
            if best is None or best.step != self.early_stop.best_step:
                raise DataError(
                    f"{self.stage.folder / 'best'}: the student of step {self.early_stop.best_step} is "
                    "missing or damaged; delete the stage's folder to train it again"
                )
            set_model_state_dict(self.module, dict[str, Any](best.weights), options=LENIENT)
            self.log(
                f"{self.stage.label}: ends after step {self.step} with the student of step {best.step}, "
                f"whose held-out KL of {self.early_stop.best:.4f} was the lowest"
            )
        if self.config.trackers:
            self.accelerator.end_training()
        keep_activations(self.stage.student.model)
        self.stage.student.model.eval()

    def _log(self, extra: dict[str, float]) -> None:
        last, sums = merge_steps(self.window)
        self.window = []
        row: dict[str, Any] = {"step": self.step, "round": self.stage.round, "tokens": self.trained_tokens}
        row |= {"fraction": self.fraction} | last | extra | self.stage.objective.metrics_view(sums)
        if self.accelerator.is_main_process:
            append_row(self.stage.folder / "metrics.jsonl", row)
        if self.config.trackers:
            self.accelerator.log(row, step=self.step)

    def learned(self) -> dict[str, Any]:
        """Return what learns, weights and running statistics, whole and on the CPU; all processes call it."""
        weights: dict[str, Any] = get_model_state_dict(self.module, options=LEARNING)
        # The alias of a frozen tied weight is not left out by torch.
        plain = self.accelerator.unwrap_model(self.module).named_parameters(remove_duplicate=False)
        learning = {name for name, parameter in plain if parameter.requires_grad} | self.statistics
        return {name: value for name, value in weights.items() if name in learning}

    def _save(self, folder: Path, keep_last: int) -> None:
        weights = self.learned()
        optimizer = get_optimizer_state_dict(self.module, _inner(self.optimizer), options=LEARNING)
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "objective": self.stage.objective.state_dict(),
                "trained_tokens": self.trained_tokens,
                "window": self.window,
                "early_stop": self.early_stop.state_dict(),
                "buffer": self.responses.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            checkpoint = Checkpoint(step=self.step, weights=weights, optimizer=optimizer, state=state)
            save_checkpoint(folder, checkpoint, key=self.stage.key, keep_last=keep_last)
        wait()

    def _resume(self) -> None:
        found = load_latest(self.stage.folder / "checkpoints", key=self.stage.key, log=self.log)
        metrics = self.stage.folder / "metrics.jsonl"
        if found is not None:
            set_model_state_dict(self.module, dict[str, Any](found.weights), options=LENIENT)
            set_optimizer_state_dict(self.module, _inner(self.optimizer), found.optimizer, options=LENIENT)
            self.stage.objective.load_state_dict(found.state["objective"])
            self.step, self.trained_tokens = found.step, found.state["trained_tokens"]
            self.window = found.state["window"]
            self.early_stop.load_state_dict(found.state["early_stop"])
            self.responses.load_state_dict(found.state["buffer"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(found.state["scaler"])
            self.log(f"{self.stage.label}: continuing after step {self.step}, {self.fraction:.0%} done")
        if self.accelerator.is_main_process and (lost := drop_rows_after(metrics, self.step)):
            self.log(f"{self.stage.label}: {lost:,} damaged lines of {metrics} are dropped")
        # All read the same checkpoint before any of them writes the next.
        wait()
        if self.accelerator.is_main_process:
            for name in ("checkpoints", "best"):
                drop_later(self.stage.folder / name, step=self.step)


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def _accelerator(config: TrainConfig, stage: Stage) -> Accelerator:
    """Return accelerate's view of the processes, with the trackers of the config started.

    Raises:
        ConfigError: a tracker is unknown or not installed, or the device cannot autocast the precision.
    """
    on_cpu = stage.student.device.type == "cpu"
    if config.precision == "fp16" and on_cpu:
        raise ConfigError("train.precision: fp16 needs an accelerator; use float32 or bf16 on a CPU")
    # accelerate drops what is not installed with no more than a debug message.
    available = sorted(tracker.value for tracker in get_available_trackers())
    for tracker in config.trackers:
        if tracker not in available:
            raise ConfigError(
                f"train.trackers: {tracker!r} is not installed here or not a tracker of accelerate; "
                f"{did_you_mean(tracker, available)}"
            )
    # Prompts without images skip what reads them, layers of the language model among it, an expert waits for
    # its tokens, and what only chooses among experts or keys is never reached. What no process has used gets
    # no gradient, as in one process.
    accelerator = Accelerator(
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        mixed_precision=PRECISIONS[config.precision],
        cpu=on_cpu,
        log_with=list(config.trackers) or None,
        project_dir=stage.folder,
    )
    if config.trackers:
        settings = config.decisive().items()
        flat = {key: value for key, value in settings if isinstance(value, int | float | str)}
        accelerator.init_trackers(stage.label.replace(" ", "_"), config=flat)
    return accelerator
