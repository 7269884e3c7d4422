"""The route of the same tokens under other ids: tokens are matched by their string and kind, added or not.

Added tokens that one side lacks never occur in a response. Whatever else differs is refused, never guessed.
"""

from typing import TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.chat import pad_id
from vlm_distill.alignment.alignment import Alignment, Permutation
from vlm_distill.alignment.tokens import added_tokens, vocabulary_width
from vlm_distill.errors import AdapterError, few, shown
from vlm_distill.losses import IdList
from vlm_distill.losses.compared_ids import OUTSIDE

Token: TypeAlias = tuple[str, bool]
"""Its string, and whether it is an added one."""


def permuted_ids(teacher: LoadedModel, student: LoadedModel) -> Alignment:
    """Return the ids of all tokens that both sides have inside their output layers, in the teacher's order.

    Both models may be skeletons.

    Raises:
        AdapterError: a token that a response may need exists, or can be chosen, on one side only.
    """
    theirs, ours = _tokens(teacher), _tokens(student)
    _require_same_text(teacher, student, theirs.keys() - ours.keys(), ours.keys() - theirs.keys())
    shared = theirs.keys() & ours.keys()
    widths = vocabulary_width(teacher), vocabulary_width(student)
    # [token, 2]: the teacher's id and the student's.
    pairs = sorted(
        (theirs[one], ours[one]) for one in shared if theirs[one] < widths[0] and ours[one] < widths[1]
    )
    teacher_ids, student_ids = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(dim=1)
    _require_needed(teacher, student, {*teacher_ids.tolist()}, {*student_ids.tolist()})
    permutation = Permutation(
        to_teacher=_table(student_ids, teacher_ids, width=widths[1]),
        to_student=_table(teacher_ids, student_ids, width=widths[0]),
        teacher_pad=pad_id(teacher.tokenizer),
    )
    return Alignment(
        route=f"the same tokens under other ids: ids are mapped; losses compare {len(pairs)} tokens",
        student=IdList(ids=student_ids),
        teacher=IdList(ids=teacher_ids),
        student_suppressed=_suppressed(student, permutation.to_teacher, teacher, permutation.to_student),
        teacher_suppressed=_suppressed(teacher, permutation.to_student, student, permutation.to_teacher),
        only_teacher=tuple(sorted(token for token, _ in theirs.keys() - ours.keys())),
        only_student=tuple(sorted(token for token, _ in ours.keys() - theirs.keys())),
        num_beyond=len(shared) - len(pairs),
        permutation=permutation,
    )


def _tokens(loaded: LoadedModel) -> dict[Token, int]:
    added = added_tokens(loaded.tokenizer)
    return {(token, token in added): token_id for token, token_id in loaded.tokenizer.get_vocab().items()}


def _require_same_text(
    teacher: LoadedModel, student: LoadedModel, only_teacher: set[Token], only_student: set[Token]
) -> None:
    """Refuse tokenizers that cut texts into other tokens."""
    lacking = [
        sorted(token for token, is_added in only if not is_added) for only in (only_teacher, only_student)
    ]
    if any(lacking):
        counts = [
            f"{len(tokens):,} of {len(side.tokenizer):,} tokens only the {role} has"
            + (f" (first: {few([shown(token) for token in tokens], most=5)})" if tokens else "")
            for role, side, tokens in zip(("teacher", "student"), (teacher, student), lacking, strict=True)
        ]
        raise AdapterError(
            f"{teacher.path} and {student.path}: token sets do not match: {', '.join(counts)}; there is no "
            "route between different token sets yet: build the student with the teacher's tokenizer "
            "(student.build.tokenizer: teacher), choose one of its family, or leave `teacher` out and train "
            "on its answers as references of the data (objective sft)"
        )


def _require_needed(
    teacher: LoadedModel, student: LoadedModel, teacher_ids: set[int], student_ids: set[int]
) -> None:
    """Refuse a pair in which one model cannot say, or end with, what the other can."""
    lost: dict[str, None] = {}
    for side, compared in ((teacher, teacher_ids), (student, student_ids)):
        added, tokenizer = added_tokens(side.tokenizer), side.tokenizer
        needed = [token_id for token, token_id in tokenizer.get_vocab().items() if token not in added]
        missing = sorted({*needed, *side.stop_ids} - compared)
        lost |= dict.fromkeys(map(str, tokenizer.convert_ids_to_tokens(missing)))
    if lost:
        raise AdapterError(
            f"{teacher.path} and {student.path}: responses need {len(lost):,} more tokens than those that "
            f"both have inside their output layers (first: {few([shown(token) for token in lost], most=5)}); "
            "use one tokenizer for both models (student.build.tokenizer: teacher)"
        )


def _table(ids: Int[Tensor, " token"], others: Int[Tensor, " token"], *, width: int) -> Int[Tensor, " id"]:
    """Return for each id of a layer that of the other model, OUTSIDE where there is none."""
    table = torch.full((width,), OUTSIDE)
    table[ids] = others
    return table


def _suppressed(
    loaded: LoadedModel, table: Int[Tensor, " id"], other: LoadedModel, back: Int[Tensor, " other_id"]
) -> tuple[int, ...]:
    """Return the ids of a model that the other lacks, and its own for the placeholders of both."""
    lacking = (table == OUTSIDE).nonzero()[:, 0].tolist()
    placeholders = [int(back[one]) for one in other.image_token_ids if one < len(back)]
    return tuple(sorted({*lacking, *loaded.image_token_ids, *placeholders} - {OUTSIDE}))
