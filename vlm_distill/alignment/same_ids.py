"""The route of identical tokenizers: an id means the same token in both models.

Image placeholders and other added tokens may differ: they never occur in a response. Everything else that
differs is refused, never guessed.
"""

from collections.abc import Mapping
from typing import Any

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.alignment.alignment import Alignment
from vlm_distill.errors import AdapterError
from vlm_distill.losses import IdRange


def same_ids(teacher: LoadedModel, student: LoadedModel) -> Alignment:
    """Return the range of ids that mean the same token on both sides and lie inside both output layers.

    Both models may be skeletons.

    Raises:
        AdapterError: an id means two tokens, or a token that a response may contain exists on one side only.
    """
    only_teacher, only_student, shared = _compare_vocabularies(teacher, student)
    stop = _shared_range(teacher, student, shared)
    ids = IdRange(stop=stop)
    return Alignment(
        route=f"identical tokenizers: ids are shared; losses compare ids 0 to {stop - 1}",
        student=ids,
        teacher=ids,
        suppressed_ids=_suppressed_ids(teacher, student, stop),
        only_teacher=only_teacher,
        only_student=only_student,
        num_beyond=len(shared) - stop,
    )


def vocabulary_width(loaded: LoadedModel) -> int:
    """Return the number of ids of the output layer, its padding included."""
    config: Any = loaded.model.config
    return int(config.get_text_config().vocab_size)


def _compare_vocabularies(
    teacher: LoadedModel, student: LoadedModel
) -> tuple[tuple[str, ...], tuple[str, ...], dict[int, str]]:
    """Return the added tokens that stand on one side only (or elsewhere), and the shared tokens by id."""
    theirs, ours = teacher.tokenizer.get_vocab(), student.tokenizer.get_vocab()
    shared = {token_id: token for token, token_id in theirs.items() if ours.get(token) == token_id}
    only_teacher = [token for token, token_id in theirs.items() if ours.get(token) != token_id]
    only_student = [token for token, token_id in ours.items() if theirs.get(token) != token_id]
    added = _added_tokens(teacher.tokenizer) | _added_tokens(student.tokenizer)
    wrong = sorted({*only_teacher, *only_student} - added)
    if wrong:
        raise AdapterError(
            f"{teacher.path} and {student.path}: token sets do not match: {len(wrong)} of "
            f"{len(theirs.keys() | ours.keys())} tokens differ (first: {wrong[:5]}); build the student with "
            "the teacher's tokenizer (student.build.tokenizer: teacher) or choose one of its family"
        )
    return tuple(sorted(only_teacher)), tuple(sorted(only_student)), shared


def _shared_range(teacher: LoadedModel, student: LoadedModel, shared: Mapping[int, str]) -> int:
    """Return n so that all ids below n are shared; behind it may be added tokens that no response needs."""
    width = min(vocabulary_width(teacher), vocabulary_width(student))
    stop = next(token_id for token_id in range(width + 1) if token_id == width or token_id not in shared)
    added = _added_tokens(teacher.tokenizer) & _added_tokens(student.tokenizer)
    needed = {token_id: token for token_id, token in shared.items() if token not in added}
    for side in (teacher, student):
        needed |= {token_id: side.tokenizer.convert_ids_to_tokens(token_id) for token_id in side.stop_ids}
    lost = sorted(token_id for token_id in needed if token_id >= stop)
    if lost:
        first = [needed[token_id] for token_id in lost[:5]]
        raise AdapterError(
            f"{teacher.path} and {student.path}: only ids below {stop} mean the same token and lie "
            f"inside both output layers, but responses need {len(lost)} more (first: {first}); "
            "use one tokenizer for both models (student.build.tokenizer: teacher)"
        )
    return stop


def _suppressed_ids(teacher: LoadedModel, student: LoadedModel, stop: int) -> tuple[int, ...]:
    behind = range(stop, max(vocabulary_width(teacher), vocabulary_width(student)))
    return tuple(sorted({*behind, *teacher.image_token_ids, *student.image_token_ids}))


def _added_tokens(tokenizer: Any) -> set[str]:
    return {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(
        tokenizer.all_special_tokens
    )
