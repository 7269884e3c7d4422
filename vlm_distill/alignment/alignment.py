"""Which ids of two models mean the same token, as everything reads it that compares their distributions.

How they are found is in a file per route (same_ids.py), what is printed of a pair in pair.py.
"""

from dataclasses import dataclass

from vlm_distill.losses import ComparedIds, IdRange


@dataclass(frozen=True, kw_only=True, slots=True)
class Alignment:
    """The ids of two models that a loss may compare, column by column.

    `student` and `teacher` are as many ids, and the c-th of both is one token; `route` says in words how they
    were found. `suppressed_ids` must not be generated: what one model could not read, and the placeholders of
    images. `only_teacher` and `only_student` are added tokens that the other side lacks or has elsewhere,
    `num_beyond` counts added tokens of both that are not compared.
    """

    route: str
    student: ComparedIds
    teacher: ComparedIds
    suppressed_ids: tuple[int, ...] = ()
    only_teacher: tuple[str, ...] = ()
    only_student: tuple[str, ...] = ()
    num_beyond: int = 0


ALL_IDS = Alignment(route="all ids as they are", student=IdRange(), teacher=IdRange())
"""That of a student without a teacher, and of models that share their ids and the width of their layers."""
