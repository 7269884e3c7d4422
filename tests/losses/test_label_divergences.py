"""Divergences that read the labels' log-probabilities alone, against autograd on full logits."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from vlm_distill.losses import NegativeLogLikelihood, OneHot, SampledReverseKL, Teacher
from vlm_distill.losses.label_divergences import LabelDivergence
from vlm_distill.losses.row_blocks import RowBlock

every_label_divergence = pytest.mark.parametrize("kind", get_args(LabelDivergence), ids=lambda k: k.__name__)
COLUMNS = torch.tensor([3, 0, -1, 8, 1])


def block_of(z_s: Tensor, z_t: Tensor) -> RowBlock:
    """Return rows that give the labels' log-probabilities alone; those of column -1 are not real."""
    log_q, log_p = z_s.log_softmax(-1), z_t.log_softmax(-1)
    every = torch.arange(len(COLUMNS))
    return RowBlock(
        log_q=log_q,
        columns=COLUMNS,
        student_labels=log_q[every, COLUMNS],
        teacher=None,
        teacher_labels=log_p[every, COLUMNS],
    )


def logits(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(5, 9, generator=generator, dtype=torch.float64)


@every_label_divergence
def test_value_and_gradient_are_those_of_autograd_and_a_label_outside_has_no_gradient(kind) -> None:
    divergence, inside = kind(), COLUMNS >= 0
    z_s, z_t = logits(0), logits(1)
    leaf = z_s.clone().requires_grad_()
    plain = block_of(leaf, z_t)
    labels = [plain.student_labels, plain.teacher_labels][: 1 + divergence.needs_teacher]
    values = divergence(*labels)
    (expected,) = torch.autograd.grad(values[inside].sum(), leaf)
    found = divergence.of_rows(block_of(z_s, z_t), Teacher() if divergence.needs_teacher else OneHot())
    torch.testing.assert_close(found[0], values.detach())
    torch.testing.assert_close(found[1], expected)
    assert found[1][~inside].eq(0).all()


def test_values_are_log_probabilities_by_hand() -> None:
    student, teacher = torch.tensor([0.5, 0.1]).log(), torch.tensor([0.25, 0.2]).log()
    torch.testing.assert_close(NegativeLogLikelihood()(student), torch.tensor([2.0, 10.0]).log())
    torch.testing.assert_close(SampledReverseKL()(student, teacher), torch.tensor([2.0, 0.5]).log())


@every_label_divergence
def test_no_distribution_of_a_teacher_is_needed(kind) -> None:
    assert not kind.compares_distributions
    assert kind.needs_teacher == (kind is SampledReverseKL)
