"""linear_divergence against full logits in float64: values, gradients, chunks, memory and use in training."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from loss_oracle import full_logits, plain_linear_divergence
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vlm_distill.batches import Head
from vlm_distill.losses import (
    ComparedIds,
    ForwardKL,
    IdList,
    IdRange,
    NegativeLogLikelihood,
    RowGroup,
    Rows,
    SkewKL,
    SkewReverseKL,
    linear_divergence,
)
from vlm_distill.losses.rows import BLOCK_LOGITS, BYTES_PER_LOGIT

ROWS, VOCAB, SHARED, STUDENT_WIDTH, TEACHER_WIDTH = 13, 11, 8, 6, 10
IDS = torch.tensor([1, 2, 3, 5, 6, 7, 9, 10])
HEADS = {"plain": {}, "scaled": {"scale": 0.7}, "capped": {"scale": 1.3, "soft_cap": 2.0}}
ALL = IdRange()
COMPARED = {"all": ALL, "range": IdRange(start=1, stop=1 + SHARED), "list": IdList(ids=IDS)}
LARGE = 1 << 30


def budget(rows: int, columns: int = VOCAB) -> int:
    return rows * columns * BYTES_PER_LOGIT


def make_rows(
    width: int, *, seed: int, dtype=torch.float64, bias: bool = True, compared: ComparedIds = ALL, **head
) -> Rows:
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    weight = leaf(VOCAB, width)
    head = Head(weight=weight, bias=leaf(VOCAB) if bias else None, **head)
    return Rows(hidden=leaf(ROWS, width), head=head, compared=compared)


def make_pair(**options) -> tuple[Rows, Rows]:
    return make_rows(STUDENT_WIDTH, seed=1, **options), make_rows(TEACHER_WIDTH, seed=2, **options)


def alpha_of_gap(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    return (0.05 + 0.3 * (teacher_log_probs.exp() - student_log_probs.exp()).abs()).clamp(0.01, 0.9)


def make_groups(dtype: torch.dtype = torch.float64) -> list[RowGroup]:
    def weights(count: int) -> Tensor:
        return torch.linspace(0.1, 1.0, count, dtype=dtype)

    return [
        RowGroup(
            divergence=SkewKL(), rows=torch.tensor([0, 1, 2, 7, 8]), weight=weights(5), parameter=alpha_of_gap
        ),
        RowGroup(
            divergence=SkewReverseKL(),
            rows=torch.tensor([3, 4, 12]),
            weight=weights(3),
            parameter=weights(3) / 2,
        ),
        RowGroup(divergence=NegativeLogLikelihood(), rows=torch.tensor([0, 4, 9]), weight=weights(3)),
        RowGroup(divergence=ForwardKL(), rows=torch.arange(ROWS), weight=weights(ROWS)),
        RowGroup(divergence=ForwardKL(), rows=torch.tensor([], dtype=torch.long), weight=weights(0)),
    ]


def labels_and_columns(compared: ComparedIds = ALL) -> tuple[Tensor, Tensor]:
    columns = (3 * torch.arange(ROWS) + 1) % SHARED
    return torch.tensor([compared.token_id(column) for column in columns.tolist()]), columns


def gradients_of(rows: Rows) -> list[Tensor | None]:
    tensors = [rows.hidden, rows.head.weight, rows.head.bias]
    return [None if tensor is None else tensor.grad for tensor in tensors]


def in_float64(rows: Rows) -> Rows:
    """Return a detached copy with its own gradients."""

    def copy(tensor: Tensor) -> Tensor:
        return tensor.detach().double().requires_grad_()

    head = rows.head
    bias = None if head.bias is None else copy(head.bias)
    head = Head(weight=copy(head.weight), bias=bias, scale=head.scale, soft_cap=head.soft_cap)
    return Rows(hidden=copy(rows.hidden), head=head, compared=rows.compared)


@pytest.mark.parametrize("size", [1, 5, 100])
@pytest.mark.parametrize("compared", COMPARED.values(), ids=COMPARED.keys())
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_loss_and_gradients_equal_full_logits(head: dict, compared: ComparedIds, size: int) -> None:
    student, teacher = make_pair(compared=compared, **head)
    labels, columns = labels_and_columns(compared)
    result = linear_divergence(
        student, teacher, groups=make_groups(), labels=labels, byte_budget=budget(size, student.num_columns)
    )
    result.loss.backward()
    plain = in_float64(student)
    expected = plain_linear_divergence(plain, teacher, make_groups(), columns)
    expected.backward()
    torch.testing.assert_close(result.loss, expected, rtol=1e-10, atol=0)
    for ours, theirs in zip(gradients_of(student), gradients_of(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert gradients_of(teacher) == [None, None, None]


@pytest.mark.parametrize("size", [1, 100])
def test_the_teacher_may_have_the_same_tokens_at_other_ids(size: int) -> None:
    student, teacher = make_pair()
    places = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(3))
    # Row c of the teacher's output layer becomes row places[c].
    head = Head(weight=teacher.head.weight[places.argsort()], bias=teacher.head.bias[places.argsort()])
    elsewhere = Rows(hidden=teacher.hidden, head=head, compared=IdList(ids=places))
    labels, _ = labels_and_columns()
    expected, found = (
        linear_divergence(student, one, groups=make_groups(), labels=labels, byte_budget=budget(size))
        for one in (teacher, elsewhere)
    )
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.teacher_label_log_probs, expected.teacher_label_log_probs)


@pytest.mark.parametrize("size", [1, 5, 100])
def test_float32_agrees_with_float64_to_a_millionth(size: int) -> None:
    student, teacher = make_pair(dtype=torch.float32)
    labels, columns = labels_and_columns()
    result = linear_divergence(
        student, teacher, groups=make_groups(torch.float32), labels=labels, byte_budget=budget(size)
    )
    result.loss.backward()
    plain = in_float64(student)
    expected = plain_linear_divergence(plain, in_float64(teacher), make_groups(), columns)
    expected.backward()
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(gradients_of(student), gradients_of(plain), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


def test_row_values_and_label_log_probs_are_detached_and_exact() -> None:
    student, teacher = make_pair()
    labels, columns = labels_and_columns()
    result = linear_divergence(student, teacher, groups=make_groups(), labels=labels, byte_budget=budget(4))
    every = torch.arange(ROWS)
    for rows, log_probs in (
        (student, result.student_label_log_probs),
        (teacher, result.teacher_label_log_probs),
    ):
        assert not log_probs.requires_grad
        torch.testing.assert_close(log_probs, full_logits(rows).softmax(-1)[every, columns].log().detach())
    for group, values in zip(make_groups(), result.row_values, strict=True):
        assert not values.requires_grad
        assert values.shape == group.rows.shape
    weighted = [(group.weight * v).sum() for group, v in zip(make_groups(), result.row_values, strict=True)]
    torch.testing.assert_close(torch.stack(weighted).sum(), result.loss.detach())


def test_without_a_teacher_the_likelihood_needs_no_teacher_rows() -> None:
    student, _ = make_pair()
    labels, columns = labels_and_columns()
    groups = make_groups()[2:3]
    result = linear_divergence(student, None, groups=groups, labels=labels, byte_budget=budget(4))
    torch.testing.assert_close(result.loss, plain_linear_divergence(student, None, groups, columns))
    assert result.teacher_label_log_probs is None


def test_a_frozen_head_gets_no_gradient_and_costs_none() -> None:
    student, teacher = make_pair()
    student.head.weight.requires_grad_(False)
    student.head.bias.requires_grad_(False)
    labels, columns = labels_and_columns()
    with LargestTensor() as largest:
        result = linear_divergence(
            student, teacher, groups=make_groups(), labels=labels, byte_budget=budget(1)
        )
    assert (VOCAB, STUDENT_WIDTH) not in largest.shapes
    result.loss.backward()
    assert student.head.weight.grad is None
    assert student.head.bias.grad is None
    (expected,) = torch.autograd.grad(
        plain_linear_divergence(student, teacher, make_groups(), columns), student.hidden
    )
    torch.testing.assert_close(student.hidden.grad, expected)


class LargestTensor(TorchDispatchMode):
    """Counts the new tensors of each shape."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[int, ...]] = Counter()

    @property
    def shapes(self) -> set[tuple[int, ...]]:
        return set(self.counts)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        # Neither a view nor in place.
        is_new = isinstance(out, Tensor) and not function.is_view and not function._schema.is_mutable
        if is_new:
            self.counts[tuple(out.shape)] += 1
        return out


def test_logits_never_exist_for_more_than_one_chunk() -> None:
    student, teacher = make_pair()
    labels, _ = labels_and_columns()
    with LargestTensor() as largest:
        result = linear_divergence(
            student, teacher, groups=make_groups(), labels=labels, byte_budget=budget(2)
        )
        result.loss.backward()
    logits_rows = [shape[0] for shape in largest.shapes if len(shape) == 2 and shape[1] == VOCAB]
    assert max(logits_rows) == 2


@pytest.mark.parametrize("size", [4, 100])
def test_the_gradient_of_the_weight_is_made_once_and_handed_over(size: int) -> None:
    student, teacher = make_pair(bias=False)
    labels, _ = labels_and_columns()
    for _ in range(2):
        student.head.weight.grad = None
        with LargestTensor() as largest:
            linear_divergence(
                student, teacher, groups=make_groups(), labels=labels, byte_budget=budget(size)
            ).loss.backward()
        assert largest.counts[(VOCAB, STUDENT_WIDTH)] == 1


def test_a_budget_below_one_row_still_takes_one() -> None:
    student, teacher = make_pair()
    labels, _ = labels_and_columns()
    tight = linear_divergence(student, teacher, groups=make_groups(), labels=labels, byte_budget=1)
    wide = linear_divergence(student, teacher, groups=make_groups(), labels=labels, byte_budget=LARGE)
    torch.testing.assert_close(tight.loss, wide.loss)


def test_no_rows_give_zero_with_a_gradient_path() -> None:
    student, teacher = make_pair()
    empty = [
        Rows(hidden=rows.hidden.detach()[:0].requires_grad_(), head=rows.head) for rows in (student, teacher)
    ]
    nothing = torch.zeros(0, dtype=torch.long)
    for groups in (
        [],
        [RowGroup(divergence=SkewKL(), rows=nothing, weight=torch.zeros(0), parameter=alpha_of_gap)],
    ):
        result = linear_divergence(*empty, groups=groups, labels=nothing, byte_budget=LARGE)
        assert result.loss.item() == 0
        result.loss.backward()
        assert empty[0].hidden.grad.shape == (0, STUDENT_WIDTH)
        assert (student.head.weight.grad == 0).all()


def test_without_gradients_the_value_is_the_same() -> None:
    student, teacher = make_pair()
    labels, _ = labels_and_columns()
    with torch.no_grad():
        quiet = linear_divergence(student, teacher, groups=make_groups(), labels=labels, byte_budget=LARGE)
    assert not quiet.loss.requires_grad
    loud = linear_divergence(student, teacher, groups=make_groups(), labels=labels, byte_budget=LARGE)
    assert torch.equal(quiet.loss, loud.loss)


def test_upstream_factors_accumulate_over_micro_batches_and_repeated_backwards() -> None:
    student, teacher = make_pair()
    labels, columns = labels_and_columns()
    loss = linear_divergence(
        student, teacher, groups=make_groups(), labels=labels, byte_budget=budget(4)
    ).loss
    (2 * loss).backward(retain_graph=True)
    (loss * loss).backward()
    plain = in_float64(student)
    expected = plain_linear_divergence(plain, teacher, make_groups(), columns)
    (2 * expected + expected * expected).backward()
    for ours, theirs in zip(gradients_of(student), gradients_of(plain), strict=True):
        torch.testing.assert_close(ours, theirs)


class TiedModel(nn.Module):
    """An embedding that is its own output layer, with a layer in between."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCAB, STUDENT_WIDTH, dtype=torch.float64)
        self.layer = nn.Linear(STUDENT_WIDTH, STUDENT_WIDTH, dtype=torch.float64)

    def forward(self, ids: Tensor) -> Tensor:
        return self.layer(self.embedding(ids)).tanh()

    def rows(self, ids: Tensor, forward=None) -> Rows:
        return Rows(hidden=(forward or self)(ids), head=Head(weight=self.embedding.weight))


def tied_gradients(loss_of_rows, forward=None) -> list[Tensor]:
    model = TiedModel()
    forward = forward(model) if forward else model
    ids = torch.arange(ROWS) % VOCAB
    for _ in range(2):  # two micro-batches
        loss_of_rows(model.rows(ids, forward)).backward()
    return [parameter.grad for parameter in model.parameters()]


def test_tied_embeddings_add_up_both_uses_also_under_ddp(monkeypatch) -> None:
    teacher = make_rows(TEACHER_WIDTH, seed=2)
    labels, columns = labels_and_columns()

    def ours(student: Rows) -> Tensor:
        return linear_divergence(
            student, teacher, groups=make_groups(), labels=labels, byte_budget=budget(4)
        ).loss

    expected = tied_gradients(
        lambda student: plain_linear_divergence(student, teacher, make_groups(), columns)
    )
    torch.testing.assert_close(tied_gradients(ours), expected)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        torch.testing.assert_close(tied_gradients(ours, nn.parallel.DistributedDataParallel), expected)
    finally:
        torch.distributed.destroy_process_group()


def test_many_chunks_of_half_precision_add_up_in_float32() -> None:
    # A bfloat16 sum of equal summands stops growing at 256 of them.
    count = 400
    one, _ = make_pair(dtype=torch.bfloat16)
    hidden = one.hidden.detach()[:1].expand(count, -1).clone().requires_grad_()
    student = Rows(hidden=hidden, head=one.head)
    group = RowGroup(divergence=NegativeLogLikelihood(), rows=torch.arange(count), weight=torch.ones(count))
    labels = torch.zeros(count, dtype=torch.long)
    linear_divergence(student, None, groups=[group], labels=labels, byte_budget=budget(1)).loss.backward()
    plain = in_float64(student)
    plain_linear_divergence(plain, None, [group], labels).backward()
    for ours, theirs in zip(gradients_of(student), gradients_of(plain), strict=True):
        assert (ours - theirs).norm() <= 1e-2 * theirs.norm()


def test_the_gradient_of_a_large_half_precision_layer_is_added_in_parts() -> None:
    rows, vocab, width = 4, 5000, 1024
    assert vocab * width > BLOCK_LOGITS
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(count, width, generator=generator).div(8).bfloat16().requires_grad_()
        for count in (rows, vocab)
    )
    student = Rows(hidden=hidden, head=Head(weight=weight))
    labels = torch.tensor([0, 4095, 4096, 4999])
    group = RowGroup(divergence=NegativeLogLikelihood(), rows=torch.arange(rows), weight=torch.ones(rows))
    with LargestTensor() as largest:
        linear_divergence(
            student, None, groups=[group], labels=labels, byte_budget=budget(1, vocab)
        ).loss.backward()
    assert largest.counts[(vocab, width)] == 2  # the sum in float32, and the parameter's own precision
    plain = in_float64(student)
    plain_linear_divergence(plain, None, [group], labels).backward()
    assert (weight.grad - plain.head.weight.grad).norm() <= 1e-2 * plain.head.weight.grad.norm()


def test_half_precision_gives_a_float32_loss_and_gradients_of_its_own_precision() -> None:
    student, teacher = make_pair(dtype=torch.bfloat16)
    labels, columns = labels_and_columns()
    result = linear_divergence(
        student, teacher, groups=make_groups(torch.float32), labels=labels, byte_budget=budget(1)
    )
    result.loss.backward()
    assert result.loss.dtype == torch.float32
    assert student.head.weight.grad.dtype == torch.bfloat16
    plain = in_float64(student)
    expected = plain_linear_divergence(plain, in_float64(teacher), make_groups(), columns)
    expected.backward()
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(gradients_of(student), gradients_of(plain), strict=True):
        assert (ours - theirs).norm() <= 4e-3 * theirs.norm()


def test_hidden_states_may_be_more_precise_than_the_output_layer() -> None:
    student, teacher = make_pair(dtype=torch.bfloat16)
    hidden = student.hidden.detach().float().requires_grad_()
    labels, columns = labels_and_columns()
    found = replace(student, hidden=hidden)
    linear_divergence(
        found, teacher, groups=make_groups(torch.float32), labels=labels, byte_budget=budget(4)
    ).loss.backward()
    plain = in_float64(student)
    plain_linear_divergence(plain, in_float64(teacher), make_groups(), columns).backward()
    for ours, theirs in zip(gradients_of(found), gradients_of(plain), strict=True):
        assert (ours - theirs).norm() <= 4e-3 * theirs.norm()


def test_autocast_casts_an_output_layer_once_however_many_chunks() -> None:
    student, teacher = make_pair(dtype=torch.float32)
    labels, _ = labels_and_columns()
    shapes = [tuple(rows.head.weight.shape) for rows in (student, teacher)]

    counts: Counter[tuple[int, ...]] = Counter()

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._to_copy.default and kwargs["dtype"] == torch.bfloat16:
                counts[tuple(args[0].shape)] += 1
            return function(*args, **(kwargs or {}))

    with torch.autocast("cpu", torch.bfloat16), Casts():
        linear_divergence(
            student, teacher, groups=make_groups(torch.float32), labels=labels, byte_budget=budget(1)
        )
    assert [counts[shape] for shape in shapes] == [1, 1]


def test_autocast_multiplies_in_bfloat16_and_returns_float32_gradients() -> None:
    student, teacher = make_pair(dtype=torch.float32)
    labels, columns = labels_and_columns()
    with torch.autocast("cpu", torch.bfloat16):
        result = linear_divergence(
            student, teacher, groups=make_groups(torch.float32), labels=labels, byte_budget=budget(4)
        )
    result.loss.backward()
    plain = in_float64(student)
    plain_linear_divergence(plain, in_float64(teacher), make_groups(), columns).backward()
    for ours, theirs in zip(gradients_of(student), gradients_of(plain), strict=True):
        assert ours.dtype == torch.float32
        assert 0 < (ours - theirs).norm() <= 3e-2 * theirs.norm()


def test_a_support_mismatch_has_its_exact_value_and_finite_gradients() -> None:
    infinity = -math.inf
    student = Rows(
        hidden=torch.zeros(1, 2, requires_grad=True),
        head=Head(weight=torch.ones(3, 2, requires_grad=True), bias=torch.tensor([0.0, infinity, 0.0])),
    )
    teacher = Rows(
        hidden=torch.zeros(1, 4), head=Head(weight=torch.ones(3, 4), bias=torch.tensor([0.0, 0.0, infinity]))
    )
    group = RowGroup(divergence=SkewKL(), rows=torch.tensor([0]), weight=torch.ones(1))
    result = linear_divergence(student, teacher, groups=[group], labels=torch.tensor([1]), byte_budget=LARGE)
    assert result.loss.item() == pytest.approx(1.15129, abs=5e-6)
    assert result.student_label_log_probs.item() == infinity
    result.loss.backward()
    assert student.hidden.grad.isfinite().all()
    assert student.head.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("compared", "outside"),
    [(IdRange(start=2, stop=10), 1), (IdRange(start=2, stop=10), 10), (IdList(ids=IDS), 4)],
)
def test_a_label_that_is_not_compared_is_impossible(compared: ComparedIds, outside: int) -> None:
    student, teacher = make_pair(compared=compared)
    labels = torch.full((ROWS,), 5)
    labels[3] = outside
    result = linear_divergence(student, teacher, groups=[], labels=labels, byte_budget=LARGE)
    for log_probs in (result.student_label_log_probs, result.teacher_label_log_probs):
        assert log_probs.isneginf().nonzero().tolist() == [[3]]


@pytest.mark.parametrize("rows", [[3, 1], [1, 1], [0, ROWS]])
def test_rows_that_do_not_ascend_within_range_are_refused(rows: list[int]) -> None:
    student, teacher = make_pair()
    group = RowGroup(divergence=SkewKL(), rows=torch.tensor(rows), weight=torch.ones(2, dtype=torch.float64))
    with pytest.raises(AssertionError):
        linear_divergence(
            student, teacher, groups=[group], labels=torch.zeros(ROWS).long(), byte_budget=LARGE
        )
