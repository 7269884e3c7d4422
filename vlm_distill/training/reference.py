"""Log-probabilities of the stored responses under the student before the stage: the reference of DPO.

Scored once and kept in a file, so that no second copy of the student stays in memory.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from vlm_distill.batches import TrainItem
from vlm_distill.files import append_jsonl, hash_json, refuse_pipe
from vlm_distill.forward import shares_prefixes
from vlm_distill.generation.decoding import evaluating
from vlm_distill.losses import NegativeLogLikelihood, RowGroup, linear_divergence
from vlm_distill.progress import Log, progress
from vlm_distill.training.config import TrainConfig
from vlm_distill.training.items import collate
from vlm_distill.training.micro_batches import count_prompt_tokens, cutter
from vlm_distill.training.step import Stage, model_rows

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def reference_log_probs(stage: Stage, config: TrainConfig, *, log: Log) -> dict[str, float]:
    """Return the summed log-probability, in nats, of every stored response under `stage.student`, by id.

    What an interrupted start has scored is not scored again.
    """
    path = stage.folder / f"reference_{stage.key[:16]}.jsonl"
    found = _read(path)
    items = [item for item in stage.items if any(one.id not in found for one in item.responses)]
    prompts = count_prompt_tokens(config, stage, processes=(0, 1), gather=list)
    batches = cutter(config, stage, prompts=prompts, shares=shares_prefixes(stage.student)).cut(items)
    log(f"{stage.label}: log-probabilities of the starting student, {len(items):,} prompts to score")
    for batch in progress(batches, label=f"{stage.label} reference"):
        scored = _score(stage, batch, config)
        append_jsonl(path, [_row(name, value) for name, value in scored.items()])
        found |= scored
    return found


def _row(name: str, log_prob: float) -> dict[str, Any]:
    return {"id": name, "log_prob": log_prob, "checksum": hash_json([name, log_prob])[:16]}


def _read(path: Path) -> dict[str, float]:
    refuse_pipe(path)
    found = {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        # A line that a kill cut short, or that is not what was written, is scored again.
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            row = json.loads(line)
            if row == _row(row["id"], row["log_prob"]):
                found[row["id"]] = row["log_prob"]
    return found


@torch.no_grad()
def _score(stage: Stage, items: Sequence[TrainItem], config: TrainConfig) -> dict[str, float]:
    batch = collate(items, student=stage.student, teacher=None, load_images=stage.load_images)
    batch = batch.to(stage.student.device)
    device, half = stage.student.device.type, config.precision != "float32"
    # In the precision of the training forward, so that the first step finds no difference.
    autocast = torch.autocast(device, dtype=HALF.get(config.precision), enabled=half)
    with evaluating(stage.student.model), autocast:
        student, _ = model_rows(stage, batch)
        rows = torch.arange(len(student.hidden), device=student.hidden.device)
        group = RowGroup(
            divergence=NegativeLogLikelihood(), rows=rows, weight=torch.ones_like(rows, dtype=torch.float32)
        )
        labels, budget = batch.responses.labels, config.loss_byte_budget
        result = linear_divergence(student, None, groups=[group], labels=labels, byte_budget=budget)
    log_probs = result.student_label_log_probs.double()
    sums = log_probs.new_zeros(len(batch.responses.input_ids))
    sums = sums.index_add(0, batch.responses.response_index, log_probs)
    names = [response.id for item in items for response in item.responses]
    return dict(zip(names, sums.tolist(), strict=True))
