"""Which ids of two models mean the same token, as everything reads it that compares their distributions.

How they are found is in a file per route (same_ids.py, permuted_ids.py), what is printed of a pair in
pair.py. Responses are stored in the ids of the model that wrote them; whatever trains, scores or caches has
them in the student's ids, and the teacher reads them in its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from vlm_distill.batches import ResponseBatch
from vlm_distill.errors import DataError
from vlm_distill.losses import ComparedIds, IdRange
from vlm_distill.losses.compared_ids import OUTSIDE
from vlm_distill.records import Author, Response


# Tensors have no truth value to be equal by.
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Permutation:
    """The ids of one model for those of the other, OUTSIDE for a token that it lacks.

    `teacher_pad` stands for padding in what the teacher reads.
    """

    to_teacher: Int[Tensor, " student_id"]
    to_student: Int[Tensor, " teacher_id"]
    teacher_pad: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Alignment:
    """The ids of two models that a loss may compare, column by column.

    `student` and `teacher` are as many ids, and the c-th of both is one token; `route` says in words how they
    were found. The suppressed ids of a model must not be generated: what the other model could not read, and
    the placeholders of images. `only_teacher` and `only_student` are added tokens that the other side lacks
    or has elsewhere, `num_beyond` counts added tokens of both that are not compared. `permutation` leads from
    the ids of one model to those of the other, None where they are the same.
    """

    route: str
    student: ComparedIds
    teacher: ComparedIds
    student_suppressed: tuple[int, ...] = ()
    teacher_suppressed: tuple[int, ...] = ()
    only_teacher: tuple[str, ...] = ()
    only_student: tuple[str, ...] = ()
    num_beyond: int = 0
    permutation: Permutation | None = None

    def suppressed_by(self, author: Author) -> tuple[int, ...]:
        """Return the ids, of its own model, that an author must not generate."""
        return self.teacher_suppressed if author == "teacher" else self.student_suppressed

    def for_teacher(self, responses: ResponseBatch) -> ResponseBatch:
        """Return responses in the ids of the teacher, given those of the student."""
        if self.permutation is None:
            return responses
        ids = self.permutation.to_teacher.to(responses.input_ids.device)[responses.input_ids]
        return replace(responses, input_ids=ids.where(responses.mask, self.permutation.teacher_pad))

    def for_student(self, responses: Sequence[Response]) -> list[Response]:
        """Return stored responses in the ids of the student: those of the teacher are in its own.

        Raises:
            DataError: the teacher wrote a token that the student lacks.
        """
        if self.permutation is None:
            return list(responses)
        table = self.permutation.to_student
        return [_moved(one, table, lacks="student") if one.author == "teacher" else one for one in responses]

    def require_readable(self, responses: Sequence[Response]) -> None:
        """Refuse responses in the student's ids that hold a token that the teacher lacks.

        Raises:
            DataError: the first such response.
        """
        if self.permutation is not None:
            for one in responses:
                _moved(one, self.permutation.to_teacher, lacks="teacher")

    def stops(self, teacher_stops: Sequence[int]) -> tuple[int, ...]:
        """Return the ids of the student for stop ids of the teacher, which every route compares."""
        if self.permutation is None:
            return tuple(teacher_stops)
        return tuple(int(self.permutation.to_student[stop]) for stop in teacher_stops)


ALL_IDS = Alignment(route="all ids as they are", student=IdRange(), teacher=IdRange())
"""That of a student without a teacher, and of models that share their ids and the width of their layers."""


def _moved(response: Response, table: Int[Tensor, " id"], *, lacks: str) -> Response:
    ids: list[int] = table[torch.tensor(response.token_ids, dtype=torch.long)].tolist()
    if OUTSIDE in ids:
        raise DataError(
            f"example {response.example_id!r}: its response by the {response.author} holds token id "
            f"{response.token_ids[ids.index(OUTSIDE)]}, a token that the {lacks} lacks; leave the example out"
        )
    return replace(response, token_ids=tuple(ids))
