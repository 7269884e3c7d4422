"""Batches for tests of objectives. The output layer is the identity, so hidden states are logits."""

import torch
from loss_oracle import TOY_MASK, toy_logits
from torch import Tensor

from vlm_distill.batches import Head, ResponseBatch
from vlm_distill.losses import Objective, Rows
from vlm_distill.records import AUTHORS

LARGE = 1 << 30
TEACHER, STUDENT, REFERENCE = (AUTHORS.index(author) for author in ("teacher", "student", "reference"))
TOY_LABELS = (3 * torch.arange(2)[:, None] + 2 * torch.arange(5) + 1) % 11


def make_batch(
    z_s: Tensor,
    z_t: Tensor,
    mask: Tensor,
    *,
    authors: list[int],
    labels: Tensor | None = None,
    prompts: list[int] | None = None,
):
    """Return rows whose output layer is the identity, so that hidden states are logits."""
    vocab = z_s.shape[-1]
    generator = torch.Generator().manual_seed(4)
    labels = torch.randint(vocab, mask.shape, generator=generator) if labels is None else labels
    prompts = list(range(len(mask))) if prompts is None else prompts
    responses = ResponseBatch(
        prompt_index=torch.tensor(prompts), input_ids=labels, mask=mask, author=torch.tensor(authors)
    )
    head = Head(weight=torch.eye(vocab, dtype=z_s.dtype))
    student = Rows(hidden=z_s[mask].clone().requires_grad_(), head=head)
    return student, Rows(hidden=z_t[mask], head=head), responses


def toy_batch(authors: list[int], *, prompts: list[int] | None = None):
    z_s, z_t, _ = toy_logits()
    return make_batch(z_s, z_t, TOY_MASK, authors=authors, labels=TOY_LABELS, prompts=prompts)


def random_batch(
    lengths: list[int],
    *,
    authors: list[int],
    width: int | None = None,
    seed: int = 0,
    prompts: list[int] | None = None,
):
    generator = torch.Generator().manual_seed(seed)
    tokens = max(lengths) if width is None else width
    z_s, z_t = (
        torch.randn(len(lengths), max(lengths), 7, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    pad = torch.full((len(lengths), tokens - max(lengths), 7), 99.0, dtype=torch.float64)
    z_s, z_t = torch.cat([z_s, pad], dim=1), torch.cat([z_t, pad], dim=1)
    mask = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    labels = torch.arange(len(lengths) * tokens).reshape(len(lengths), tokens) % 7
    return make_batch(z_s, z_t, mask, authors=authors, labels=labels, prompts=prompts)


def select(batch, keep: list[int]):
    """Return the batch with only some of its responses."""
    student, teacher, responses = batch
    rows = torch.isin(responses.response_index, torch.tensor(keep))
    kept = ResponseBatch(
        prompt_index=responses.prompt_index[keep],
        input_ids=responses.input_ids[keep],
        mask=responses.mask[keep],
        author=responses.author[keep],
        reference_log_probs=None
        if responses.reference_log_probs is None
        else responses.reference_log_probs[keep],
    )
    return (
        Rows(hidden=student.hidden.detach()[rows].requires_grad_(), head=student.head),
        Rows(hidden=teacher.hidden[rows], head=teacher.head),
        kept,
    )


def run(objective: Objective, batch, *, denominators: Tensor | None = None, byte_budget: int = LARGE):
    student, teacher, responses = batch
    denominators = objective.counts(responses) if denominators is None else denominators
    return objective.loss(student, teacher, responses, denominators, byte_budget)


def as_floats(metrics: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in metrics.items()}
