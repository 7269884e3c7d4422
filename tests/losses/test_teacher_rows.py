"""A teacher that is known in part, against dense computations on the same buckets."""

import pytest
import torch
from loss_batches import LARGE, random_batch, run, toy_batch
from loss_oracle import DIVERGENCES, name_of
from torch import Tensor

from vlm_distill.losses import (
    DPO,
    KD,
    TAID,
    DistiLLM2,
    ForwardKL,
    IdRange,
    RowGroup,
    Rows,
    SkewKL,
    Teacher,
    linear_divergence,
)
from vlm_distill.losses.row_blocks import TeacherBlock, TeacherChunk, TeacherRows
from vlm_distill.losses.rows import BYTES_PER_LOGIT
from vlm_distill.losses.teacher_rows import LabelRows, TopRows, top_rows


def known(teacher: Rows, student: Rows, labels: Tensor, *, k: int) -> TopRows:
    return top_rows(teacher.logits(teacher.project(slice(None))), student.columns(labels), k=k)


def bucket_log_probs(logits: Tensor, columns: Tensor) -> Tensor:
    """Return log-probabilities of the given columns and of all others together, by summing probabilities."""
    p = logits.softmax(dim=1)
    kept = p.gather(1, columns)
    return torch.cat([kept, (p.sum(dim=1) - kept.sum(dim=1))[:, None]], dim=1).log()


def test_forward_kl_on_two_tokens_and_the_rest_by_hand() -> None:
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64)
    q = torch.tensor([[0.2, 0.3, 0.1, 0.4]], dtype=torch.float64)
    head = random_batch([1], authors=[0])[0].head
    student = Rows(hidden=q.log(), head=type(head)(weight=torch.eye(4, dtype=torch.float64)))
    teacher = top_rows(p.log(), torch.tensor([2]), k=2)
    assert teacher.columns.tolist() == [[0, 1]]
    torch.testing.assert_close(teacher.log_probs.exp(), torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64))
    weight = torch.ones(1, dtype=torch.float64)
    group = RowGroup(divergence=ForwardKL(), rows=torch.tensor([0]), weight=weight)
    found = linear_divergence(student, teacher, groups=[group], labels=torch.tensor([2]), byte_budget=LARGE)
    by_hand = 0.5 * torch.log(torch.tensor(0.5 / 0.2)) + 0.2 * torch.log(torch.tensor(0.2 / 0.5))
    assert found.loss.item() == pytest.approx(float(by_hand))
    assert float(found.student_label_log_probs.exp()) == pytest.approx(0.1)
    assert float(found.teacher_label_log_probs.exp()) == pytest.approx(0.15)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=name_of)
def test_values_and_gradients_are_those_of_a_dense_computation_on_the_buckets(divergence) -> None:
    student, teacher, responses = random_batch([3, 2, 4], authors=[0, 1, 0])
    top = known(teacher, student, responses.labels, k=3)
    objective = KD(divergence=divergence).build()
    found = run(objective, (student, top, responses))
    (gradient,) = torch.autograd.grad(found.loss, student.hidden)

    rows = responses.is_by("teacher")[responses.response_index]
    leaf = student.hidden.detach().clone().requires_grad_()
    ours = bucket_log_probs(leaf, top.columns)
    theirs = bucket_log_probs(teacher.hidden, top.columns)
    expected = divergence(ours, theirs)[rows].mean()
    (expected_gradient,) = torch.autograd.grad(expected, leaf)
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_all_tokens_but_one_give_the_divergence_of_the_whole_distribution() -> None:
    batch = random_batch([3, 4], authors=[0, 1], prompts=[0, 0])
    student, teacher, responses = batch
    objective = DistiLLM2().build()
    whole = run(objective, batch)
    (expected,) = torch.autograd.grad(whole.loss, student.hidden)
    found = run(objective, (student, known(teacher, student, responses.labels, k=99), responses))
    (gradient,) = torch.autograd.grad(found.loss, student.hidden)
    torch.testing.assert_close(gradient, expected)
    for name, value in whole.metrics.items():
        torch.testing.assert_close(found.metrics[name], value)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_buckets_never_show_more_than_the_whole_distribution(k: int) -> None:
    batch = random_batch([5, 5], authors=[0, 0], seed=3)
    student, teacher, responses = batch
    objective = KD().build()
    found = run(objective, (student, known(teacher, student, responses.labels, k=k), responses))
    assert 0 < found.loss.item() <= run(objective, batch).loss.item()


def test_chunks_change_nothing() -> None:
    student, teacher, responses = random_batch([3, 2, 4], authors=[0, 1, 0], prompts=[0, 0, 1])
    teacher = known(teacher, student, responses.labels, k=3)
    objective = DistiLLM2().build()
    results = []
    for rows in (1, 2, 4, 100):
        found = run(objective, (student, teacher, responses), byte_budget=rows * 7 * BYTES_PER_LOGIT)
        results.append((found.loss.detach(), *torch.autograd.grad(found.loss, student.hidden)))
    for loss, gradient in results[1:]:
        torch.testing.assert_close(loss, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])


def test_gradients_reach_weight_and_bias_of_the_head_and_a_range_of_ids_holds() -> None:
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    head = type(toy_batch([0, 1])[0].head)(weight=leaf(9, 4), bias=leaf(9), scale=0.7, soft_cap=3.0)
    student = Rows(hidden=leaf(5, 4), head=head, compared=IdRange(stop=8))
    teacher = Rows(hidden=leaf(5, 6), head=type(head)(weight=leaf(11, 6)), compared=IdRange(stop=8))
    labels = torch.tensor([0, 3, 7, 2, 5])
    group = RowGroup(divergence=SkewKL(), rows=torch.arange(5), weight=torch.ones(5, dtype=torch.float64))
    whole = linear_divergence(student, teacher, groups=[group], labels=labels, byte_budget=LARGE)
    top = known(teacher, student, labels, k=7)
    found = linear_divergence(
        student, top, groups=[group], labels=labels, byte_budget=2 * 8 * BYTES_PER_LOGIT
    )
    leaves = [student.hidden, head.weight, head.bias]
    for one, other in zip(
        torch.autograd.grad(found.loss, leaves), torch.autograd.grad(whole.loss, leaves), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_no_rows_give_a_loss_of_zero_with_a_gradient_path() -> None:
    student, teacher, responses = random_batch([0, 0], authors=[0, 1], width=1)
    top = known(teacher, student, responses.labels, k=3)
    found = run(DistiLLM2().build(), (student, top, responses))
    assert found.loss.item() == 0
    assert torch.autograd.grad(found.loss, student.hidden)[0].shape == (0, 7)


def test_pairs_need_no_more_than_the_log_probabilities_of_the_labels() -> None:
    batch = random_batch([3, 4], authors=[0, 1], prompts=[0, 0])
    student, teacher, responses = batch
    objective = DPO(reference="teacher").build()
    whole = run(objective, batch)
    (expected,) = torch.autograd.grad(whole.loss, student.hidden)
    only = LabelRows(label_log_probs=known(teacher, student, responses.labels, k=1).label_log_probs)
    found = run(objective, (student, only, responses))
    (gradient,) = torch.autograd.grad(found.loss, student.hidden)
    torch.testing.assert_close(found.loss, whole.loss)
    torch.testing.assert_close(gradient, expected)


def test_what_is_not_known_is_refused() -> None:
    student, teacher, responses = random_batch([3], authors=[0])
    top = known(teacher, student, responses.labels, k=2)
    with pytest.raises(AssertionError, match="needs all logits"):
        run(TAID().build(), (student, top, responses))
    with pytest.raises(AssertionError, match="has no distribution to compare"):
        run(KD().build(), (student, LabelRows(label_log_probs=top.label_log_probs), responses))


@pytest.mark.parametrize("part", ["whole", "top", "labels"])
def test_a_block_of_a_chunk_is_the_same_rows_of_the_teacher(part: str) -> None:
    student, teacher, responses = random_batch([4, 3], authors=[0, 0])
    top = known(teacher, student, responses.labels, k=2)
    rows = {"whole": teacher, "top": top, "labels": LabelRows(label_log_probs=top.label_log_probs)}[part]
    assert isinstance(rows, TeacherRows)
    chunk = rows.in_precision().chunk(slice(2, 6))
    assert isinstance(chunk, TeacherChunk)
    block = chunk.block(slice(1, 3))
    assert isinstance(block, TeacherBlock)
    columns = student.columns(responses.labels)[3:5]
    torch.testing.assert_close(block.labels(columns), top.label_log_probs[3:5])
    torch.testing.assert_close(block[torch.tensor([1])].labels(columns[1:]), top.label_log_probs[4:5])
    assert (chunk.logits() is None) == (part != "whole")


def test_a_rest_without_probability_has_finite_gradients() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf]], dtype=torch.float64)
    top = top_rows(torch.tensor([[1.0, 0.0, -torch.inf, -torch.inf]]), torch.tensor([0]), k=2)
    for divergence in DIVERGENCES:
        values, gradient = top.compare(divergence.value_and_gradient, logits.log_softmax(dim=1), Teacher())
        whole = divergence(logits[:, :2], torch.tensor([[1.0, 0.0]], dtype=torch.float64))
        torch.testing.assert_close(values, whole)
        assert gradient.isfinite().all()
        assert gradient[:, 2:].eq(0).all()


def test_many_chunks_of_half_precision_add_up_in_float32() -> None:
    count, vocab, width = 400, 7, 4
    generator = torch.Generator().manual_seed(0)
    row, weight = torch.randn(1, width, generator=generator), torch.randn(vocab, width, generator=generator)
    head = type(toy_batch([0, 1])[0].head)(weight=weight.bfloat16().requires_grad_())
    student = Rows(hidden=row.bfloat16().expand(count, -1).clone(), head=head)
    labels = torch.zeros(count, dtype=torch.long)
    top = top_rows(torch.randn(1, vocab, generator=generator).expand(count, -1), labels, k=3)
    group = RowGroup(divergence=ForwardKL(), rows=torch.arange(count), weight=torch.ones(count))
    found = []
    for rows in (1, count):
        budget = rows * vocab * BYTES_PER_LOGIT
        loss = linear_divergence(student, top, groups=[group], labels=labels, byte_budget=budget).loss
        found.append(torch.autograd.grad(loss, head.weight)[0].double())
    assert (found[0] - found[1]).norm() <= 1e-2 * found[1].norm()
