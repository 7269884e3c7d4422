"""The route of identical tokenizers: an id means the same token in both models.

Image placeholders and other added tokens may differ: they never occur in a response.
"""

from collections.abc import Mapping

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.alignment.alignment import Alignment
from vlm_distill.alignment.tokens import added_tokens, vocabulary_width
from vlm_distill.losses import IdRange


def same_ids(teacher: LoadedModel, student: LoadedModel) -> Alignment | None:
    """Return the range of ids that mean the same token on both sides and lie inside both output layers.

    None where it lacks a token that a response may need. Both models may be skeletons.
    """
    theirs, ours = teacher.tokenizer.get_vocab(), student.tokenizer.get_vocab()
    shared = {token_id: token for token, token_id in theirs.items() if ours.get(token) == token_id}
    only_teacher = {token for token, token_id in theirs.items() if ours.get(token) != token_id}
    only_student = {token for token, token_id in ours.items() if theirs.get(token) != token_id}
    width = min(vocabulary_width(teacher), vocabulary_width(student))
    stop = next(token_id for token_id in range(width + 1) if token_id == width or token_id not in shared)
    added = added_tokens(teacher.tokenizer), added_tokens(student.tokenizer)
    if not only_teacher | only_student <= added[0] | added[1]:
        return None
    if any(token_id >= stop for token_id in _needed(teacher, student, shared, added[0] & added[1])):
        return None
    suppressed = _suppressed_ids(teacher, student, stop)
    return Alignment(
        route=f"identical tokenizers: ids are shared; losses compare ids 0 to {stop - 1}",
        student=IdRange(stop=stop),
        teacher=IdRange(stop=stop),
        student_suppressed=suppressed,
        teacher_suppressed=suppressed,
        only_teacher=tuple(sorted(only_teacher)),
        only_student=tuple(sorted(only_student)),
        num_beyond=len(shared) - stop,
    )


def _needed(
    teacher: LoadedModel, student: LoadedModel, shared: Mapping[int, str], added: set[str]
) -> set[int]:
    """Return the ids of text and of the ends of answers; no response needs other added tokens."""
    of_text = {token_id for token_id, token in shared.items() if token not in added}
    return of_text.union(teacher.stop_ids, student.stop_ids)


def _suppressed_ids(teacher: LoadedModel, student: LoadedModel, stop: int) -> tuple[int, ...]:
    behind = range(stop, max(vocabulary_width(teacher), vocabulary_width(student)))
    return tuple(sorted({*behind, *teacher.image_token_ids, *student.image_token_ids}))
