"""Golden losses, copied to tests/goldens; VLM_DISTILL_LOSS_GOLDENS may name another file of the same form.

The outputs are recomputed through linear_divergence and the objectives, with the identity as output layer.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vlm_distill.batches import Head, ResponseBatch
from vlm_distill.losses import (
    DPO,
    GKD,
    KD,
    DistiLLM2,
    ForwardKL,
    JensenShannon,
    Objective,
    Rows,
    SeqKD,
    SkewKL,
    SkewReverseKL,
    Term,
    linear_divergence,
)

COPY = Path(__file__).resolve().parents[1] / "goldens" / "losses.json"
GOLDENS = json.loads(Path(os.environ.get("VLM_DISTILL_LOSS_GOLDENS", COPY)).read_text())
INPUTS, OUTPUTS = GOLDENS["inputs"], GOLDENS["outputs"]
NUM_PAIRS = INPUTS["n_pairs"]
TEACHER_AUTHOR, STUDENT_AUTHOR = 0, 1
# Divergence on the responses of the teacher (chosen) and of the student (rejected).
SIDES = {
    "distillm_v2": (SkewKL(alpha=0.1), SkewReverseKL(alpha=0.1, detach_mixture=True)),
    "distillm_v1": (SkewReverseKL(alpha=0.1), SkewReverseKL(alpha=0.1)),
    "gkd": (JensenShannon(beta=0.9), JensenShannon(beta=0.9)),
    "kd": (ForwardKL(), None),
}


def golden_batch() -> tuple[Rows, Rows, ResponseBatch]:
    labels = torch.tensor(INPUTS["labels"])[:, 1:]
    mask = labels != -100
    author = torch.tensor([TEACHER_AUTHOR] * NUM_PAIRS + [STUDENT_AUTHOR] * NUM_PAIRS)
    responses = ResponseBatch(
        prompt_index=torch.arange(2 * NUM_PAIRS) % NUM_PAIRS,
        input_ids=labels.clamp_min(0),
        mask=mask,
        author=author,
    )
    student, teacher = (
        # Position i predicts token i + 1, so the last position predicts nothing.
        torch.tensor(INPUTS[name], dtype=torch.float64)[:, :-1][mask]
        for name in ("student_logits", "teacher_logits")
    )
    identity = torch.eye(student.shape[1], dtype=torch.float64)
    return (
        Rows(hidden=student.requires_grad_(), head=Head(weight=identity)),
        Rows(hidden=teacher, head=Head(weight=identity)),
        responses,
    )


def loss_of(objective: Objective, byte_budget: int = 1) -> float:
    student, teacher, responses = golden_batch()
    return objective.loss(student, teacher, responses, objective.counts(responses), byte_budget).loss.item()


def two_sided(chosen, rejected) -> Objective:
    sides = [("chosen", chosen, "teacher"), ("rejected", rejected, "student")]
    return Objective([Term(name=n, divergence=d, author=a) for n, d, a in sides if d is not None])


def per_response(values: Tensor, responses: ResponseBatch) -> Tensor:
    sums = torch.zeros(len(responses.mask), dtype=values.dtype).index_add(0, responses.response_index, values)
    return sums / responses.num_tokens


def test_released_preset_is_the_golden_distillm_2() -> None:
    assert loss_of(DistiLLM2(preset="released").build()) == pytest.approx(
        OUTPUTS["distillm_v2"]["loss"], abs=1e-6
    )


def test_paper_preset_starts_at_half_the_released_value() -> None:
    assert 2 * loss_of(DistiLLM2().build()) == pytest.approx(OUTPUTS["distillm_v2"]["loss"], abs=1e-6)


def test_seqkd_with_sequence_reduction_is_the_golden() -> None:
    assert loss_of(SeqKD(reduction="sequence").build()) == pytest.approx(OUTPUTS["seqkd"]["loss"], abs=1e-6)


@pytest.mark.parametrize("byte_budget", [1, 1 << 30])
@pytest.mark.parametrize("method", SIDES)
def test_composition_of_terms_is_the_golden(method: str, byte_budget: int) -> None:
    assert loss_of(two_sided(*SIDES[method]), byte_budget) == pytest.approx(OUTPUTS[method]["loss"], abs=1e-6)


@pytest.mark.parametrize("method", SIDES)
def test_divergence_of_each_response_is_the_golden(method: str) -> None:
    student, teacher, responses = golden_batch()
    for divergence, key, side in zip(
        SIDES[method], ("chosen_kl", "rejected_kl"), (slice(NUM_PAIRS), slice(NUM_PAIRS, None)), strict=True
    ):
        if divergence is not None:
            values = per_response(divergence(student.hidden.detach(), teacher.hidden), responses)[side]
            assert values.tolist() == pytest.approx(OUTPUTS[method][key], abs=1e-6)


@pytest.mark.parametrize("method", OUTPUTS)
def test_mean_label_log_probs_of_each_response_are_the_golden(method: str) -> None:
    student, teacher, responses = golden_batch()
    result = linear_divergence(student, teacher, groups=[], labels=responses.labels, byte_budget=1)
    for values, key in ((result.student_label_log_probs, "logq"), (result.teacher_label_log_probs, "logp")):
        means = per_response(values, responses).reshape(2, NUM_PAIRS).tolist()
        assert means == [pytest.approx(row, abs=1e-6) for row in OUTPUTS[method][key]]


@pytest.mark.parametrize(
    ("config", "method"),
    [
        (KD(reduction="sequence"), "kd"),
        # Both authors in one batch: the sum of the two terms of which a step has one.
        (GKD(beta=0.9), "gkd"),
        (DPO(reference="teacher", length_normalised=True), "dpkd"),
    ],
    ids=repr,
)
def test_named_method_is_the_golden(config, method: str) -> None:
    for byte_budget in (1, 1 << 30):
        loss = loss_of(config.build(), byte_budget)
        assert loss == pytest.approx(OUTPUTS[method]["loss"], abs=1e-6)
