"""float16: gradients of a loss that is divided by many tokens are far below what float16 can hold."""

import pytest
import torch
from loss_oracle import plain_linear_divergence
from torch import Tensor

from vlm_distill.batches import Head
from vlm_distill.losses import (
    ComparedIds,
    ForwardKL,
    IdList,
    IdRange,
    NegativeLogLikelihood,
    RowGroup,
    Rows,
    SkewReverseKL,
    linear_divergence,
)

ROWS, VOCAB, WIDTH = 24, 37, 16
NUM_TOKENS = 1e5
LOSS_SCALE = 2.0**16  # what a gradient scaler multiplies the loss by
RELATIVE = 2.0**-9
ALL = IdRange()
COMPARED = {
    "all": ALL,
    "range": IdRange(start=2, stop=30),
    "list": IdList(ids=torch.arange(3, 33, 2)),
}


def make_rows(seed: int, *, dtype: torch.dtype, compared: ComparedIds = ALL, **head) -> Rows:
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        values = scale * torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values.half().to(dtype).requires_grad_()

    head = Head(weight=leaf(VOCAB, WIDTH, scale=0.3), bias=leaf(VOCAB), **head)
    return Rows(hidden=leaf(ROWS, WIDTH), head=head, compared=compared)


def groups(dtype: torch.dtype) -> list[RowGroup]:
    weight = torch.full((ROWS,), 1 / NUM_TOKENS, dtype=dtype)
    every = torch.arange(ROWS)
    return [
        RowGroup(divergence=divergence, rows=every, weight=weight)
        for divergence in (ForwardKL(), SkewReverseKL(), NegativeLogLikelihood())
    ]


def gradients(loss: Tensor, rows: Rows) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [rows.hidden, rows.head.weight, rows.head.bias]))


def expected(columns: Tensor, **options) -> list[Tensor]:
    student, teacher = (make_rows(seed, dtype=torch.float64, **options) for seed in (1, 2))
    return gradients(plain_linear_divergence(student, teacher, groups(torch.float64), columns), student)


def labels_of(compared: ComparedIds = ALL) -> tuple[Tensor, Tensor]:
    columns = (3 * torch.arange(ROWS) + 1) % compared.size(VOCAB)
    return torch.tensor([compared.token_id(column) for column in columns.tolist()]), columns


@pytest.mark.parametrize("byte_budget", [1, 1 << 30])
@pytest.mark.parametrize("head", [{}, {"scale": 0.7, "soft_cap": 5.0}], ids=["plain", "capped"])
@pytest.mark.parametrize("compared", COMPARED.values(), ids=COMPARED.keys())
def test_gradients_of_float16_weights_have_float16_precision(
    compared: ComparedIds, head: dict, byte_budget: int
) -> None:
    student, teacher = (make_rows(seed, dtype=torch.float16, compared=compared, **head) for seed in (1, 2))
    labels, columns = labels_of(compared)
    loss = linear_divergence(
        student, teacher, groups=groups(torch.float32), labels=labels, byte_budget=byte_budget
    ).loss
    assert loss.dtype == torch.float32
    for ours, plain in zip(
        gradients(LOSS_SCALE * loss, student), expected(columns, compared=compared, **head), strict=True
    ):
        assert ours.dtype == torch.float16
        assert (ours.double() / LOSS_SCALE - plain).norm() <= RELATIVE * plain.norm()


@pytest.mark.parametrize("byte_budget", [1, 1 << 30])
def test_gradients_of_float32_weights_under_autocast_have_float16_precision(byte_budget: int) -> None:
    student, teacher = (make_rows(seed, dtype=torch.float32) for seed in (1, 2))
    labels, columns = labels_of()
    with torch.autocast("cpu", torch.float16):
        loss = linear_divergence(
            student, teacher, groups=groups(torch.float32), labels=labels, byte_budget=byte_budget
        ).loss
    for ours, plain in zip(gradients(loss, student), expected(columns), strict=True):
        assert ours.dtype == torch.float32
        assert 0 < (ours - plain).norm() <= RELATIVE * plain.norm()


def test_many_rows_that_agree_do_not_overflow() -> None:
    # Each row pulls the same way: a gradient scaled by its largest entry alone would add up to 3e5.
    rows, size = 3000, 100.0
    hidden = torch.full((rows, 2), size, dtype=torch.float16, requires_grad=True)
    weight = torch.zeros(2, 2, dtype=torch.float16, requires_grad=True)
    group = RowGroup(
        divergence=NegativeLogLikelihood(), rows=torch.arange(rows), weight=torch.full((rows,), 1 / rows)
    )
    labels = torch.zeros(rows, dtype=torch.long)
    student = Rows(hidden=hidden, head=Head(weight=weight))
    linear_divergence(student, None, groups=[group], labels=labels, byte_budget=1 << 30).loss.backward()
    torch.testing.assert_close(
        weight.grad, torch.tensor([[-50.0, -50.0], [50.0, 50.0]], dtype=torch.float16), rtol=2e-3, atol=0
    )


def test_a_gradient_of_zero_stays_zero() -> None:
    student = make_rows(1, dtype=torch.float16)
    teacher = Rows(hidden=student.hidden.detach(), head=student.head)
    group = RowGroup(divergence=ForwardKL(), rows=torch.arange(ROWS), weight=torch.zeros(ROWS))
    labels, _ = labels_of()
    loss = linear_divergence(student, teacher, groups=[group], labels=labels, byte_budget=1 << 30).loss
    assert all((gradient == 0).all() for gradient in gradients(loss, student))
