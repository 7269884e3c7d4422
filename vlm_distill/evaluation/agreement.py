"""How close a student's distribution is to its teacher's, token by token on responses of either.

Agreement of generated texts needs no model and is in compare.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.chat import pad_id
from vlm_distill.alignment.alignment import ALL_IDS, Alignment
from vlm_distill.batches import PromptBatch, ResponseBatch, pad_responses
from vlm_distill.data.images import ImageLoader
from vlm_distill.errors import AdapterError, DataError
from vlm_distill.forward import response_hidden
from vlm_distill.generation.decoding import evaluating
from vlm_distill.losses import ComparedIds
from vlm_distill.losses.divergences import ForwardKL, ReverseKL
from vlm_distill.losses.rows import Rows
from vlm_distill.models.positions import have_room
from vlm_distill.records import Example, Response
from vlm_distill.teacher_cache.store import CacheReader
from vlm_distill.teacher_cache.tiers import Hidden

# Logits of one chunk of rows in float32; the divergence needs a few times as much.
CHUNK_BYTES = 64 * 2**20
FORWARD_KL = ForwardKL()
# The tier of a cache that whole distributions can be compared with.
EXACT = Hidden()


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Responses to examples by example id; some may be missing.

    A `cache` holds the teacher's hidden states of the responses; of the teacher only its output layer is then
    read.
    """

    examples: Sequence[Example]
    responses: Mapping[str, Response]
    load_images: ImageLoader
    cache: CacheReader | None = None

    def given(self) -> list[Example]:
        """Return the examples with a response of at least one token; DataError where there are none."""
        found = [
            one for one in self.examples if one.id in self.responses and self.responses[one.id].token_ids
        ]
        if not found:
            raise DataError(
                f"agreement: expected responses to {len(self.examples)} examples, got none; generate first"
            )
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Means over all response tokens: the divergence in nats, and the share with the same argmax.

    Left out are `num_without_response` examples without a response, and `num_too_long` whose prompt and
    response are beyond the positions of a model that reads them.
    """

    token_kl: float
    top1: float
    num_tokens: int
    num_without_response: int
    num_too_long: int


def agreement(
    student: LoadedModel,
    teacher: LoadedModel,
    answers: Answers,
    *,
    batch_size: int,
    alignment: Alignment = ALL_IDS,
    divergence: ForwardKL | ReverseKL = FORWARD_KL,
) -> Agreement:
    """Return how well the models agree on `answers`.

    By default the responses are the teacher's and the divergence is KL(teacher || student); `ReverseKL` on
    the student's own responses says what the teacher thinks of the texts that the student gets into itself.
    Distributions are restricted to the ids of `alignment` before the softmax; without it the output layers
    must have the same number of rows. Both models are put in eval mode for the call.

    Raises:
        AdapterError: the output layers differ and no `alignment` is given. DataError: no example has a
        response with room in both models, or a response has an id that is not compared.
    """
    given = answers.given()
    _require_as_many(student, teacher, alignment)
    kl_sums: list[float] = []
    num_equal = num_tokens = 0
    with torch.inference_mode(), evaluating(student.model), evaluating(teacher.model):
        for batch in _fitting(student, teacher, answers, given, batch_size=batch_size):
            rows = _batch_rows(student, teacher, batch, cache=answers.cache, alignment=alignment)
            kl, equal = _compare_rows(divergence, *rows)
            # [token] -> one sum a response: how responses are batched changes no rounding.
            kl_sums += [float(one.sum()) for one in kl.split(batch.padded.num_tokens.tolist())]
            num_equal, num_tokens = num_equal + int(equal.sum()), num_tokens + len(kl)
    return Agreement(
        token_kl=sum(kl_sums) / num_tokens,
        top1=num_equal / num_tokens,
        num_tokens=num_tokens,
        num_without_response=len(answers.examples) - len(given),
        num_too_long=len(given) - len(kl_sums),
    )


def _require_as_many(student: LoadedModel, teacher: LoadedModel, alignment: Alignment) -> None:
    ours = alignment.student.size(len(student.head.weight))
    theirs = alignment.teacher.size(len(teacher.head.weight))
    if ours != theirs:
        raise AdapterError(
            f"agreement: {ours} ids of the student are compared with {theirs} of the teacher; give the ids "
            "that both models share as `alignment`"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    """Some responses, padded, and their prompts for each model; no teacher's where a cache has its states."""

    responses: Sequence[Response]
    padded: ResponseBatch
    student: PromptBatch
    teacher: PromptBatch | None


def _fitting(
    student: LoadedModel,
    teacher: LoadedModel,
    answers: Answers,
    given: Sequence[Example],
    *,
    batch_size: int,
) -> Iterator[_Batch]:
    """Yield batches of what fits both models; DataError where nothing does."""
    starts = range(0, len(given), batch_size)
    batches = (_with_room(student, teacher, answers, given[at : at + batch_size]) for at in starts)
    num_batches = 0
    for batch in batches:
        if batch is not None:
            num_batches += 1
            yield batch
    if not num_batches:
        raise DataError(
            f"agreement: none of {len(given)} responses fits with its prompt into the positions of "
            f"{student.path} and {teacher.path}; lower evaluate.agreement_tokens, or choose shorter prompts "
            "or models with more positions"
        )


def _with_room(
    student: LoadedModel, teacher: LoadedModel, answers: Answers, examples: Sequence[Example]
) -> _Batch | None:
    """Return those of the examples that fit both models with their responses; None where no one does."""
    batch = _encode(student, teacher, answers, examples)
    num_tokens = batch.padded.num_tokens
    fits = have_room(student, batch.student, num_tokens)
    if batch.teacher is not None:
        theirs = have_room(teacher, batch.teacher, num_tokens)
        fits = [ours and its for ours, its in zip(fits, theirs, strict=True)]
    if all(fits):
        return batch
    kept = [one for one, is_kept in zip(examples, fits, strict=True) if is_kept]
    return _encode(student, teacher, answers, kept) if kept else None


def _encode(
    student: LoadedModel, teacher: LoadedModel, answers: Answers, examples: Sequence[Example]
) -> _Batch:
    responses = [answers.responses[example.id] for example in examples]
    pictures = [answers.load_images(example) for example in examples]
    return _Batch(
        responses=responses,
        padded=pad_responses([[one] for one in responses], pad_id=pad_id(student.tokenizer)),
        student=student.encode(examples, pictures),
        teacher=teacher.encode(examples, pictures) if answers.cache is None else None,
    )


def _batch_rows(
    student: LoadedModel,
    teacher: LoadedModel,
    batch: _Batch,
    *,
    cache: CacheReader | None,
    alignment: Alignment,
) -> tuple[Rows, Rows]:
    """Return what both models say about the tokens of some responses."""
    _check_labels(batch.padded, alignment.student, width=len(student.head.weight))
    of_student = _rows(student, batch.student, batch.padded, alignment.student)
    if cache is None:
        assert batch.teacher is not None
        of_teacher = _rows(teacher, batch.teacher, alignment.for_teacher(batch.padded), alignment.teacher)
    else:
        cached = cache.read([one.id for one in batch.responses])
        tensors = {name: value.to(student.device) for name, value in cached.items()}
        of_teacher = EXACT.rows(tensors, teacher.head, alignment.teacher)
    return of_student, of_teacher


def _rows(loaded: LoadedModel, prompts: PromptBatch, responses: ResponseBatch, compared: ComparedIds) -> Rows:
    device, head = loaded.device, loaded.head
    hidden = response_hidden(loaded, prompts.to(device), responses.to(device))
    return Rows(hidden=hidden.to(head.weight.dtype), head=head, compared=compared)


def _check_labels(responses: ResponseBatch, compared: ComparedIds, *, width: int) -> None:
    outside = responses.labels[compared.columns(responses.labels, width) < 0]
    if len(outside):
        raise DataError(
            f"agreement: a response holds token id {int(outside[0])}, which the two models do not share"
        )


def _compare_rows(
    divergence: ForwardKL | ReverseKL, student: Rows, teacher: Rows
) -> tuple[Float[Tensor, " row"], Int[Tensor, " row"]]:
    """Return, for each response token, the divergence in nats and whether the argmax is equal."""
    size = max(1, CHUNK_BYTES // (4 * student.num_columns))
    kl, equal = [], []
    for start in range(0, len(student.hidden), size):
        chunk = slice(start, start + size)
        student_logits = student.logits(student.project(chunk))
        teacher_logits = teacher.logits(teacher.project(chunk)).to(student_logits.device)
        kl.append(divergence(student_logits, teacher_logits).double())
        equal.append((student_logits.argmax(dim=1) == teacher_logits.argmax(dim=1)).long())
    return torch.cat(kl).cpu(), torch.cat(equal).cpu()
