"""Finding out why a loss is not finite. Only called when one is, so it may wait for the device."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from vlm_distill.batches import ResponseBatch
from vlm_distill.errors import DataError
from vlm_distill.losses.compared_ids import OUTSIDE
from vlm_distill.losses.row_blocks import TeacherRows
from vlm_distill.losses.rows import Rows, row_chunks


@torch.no_grad()
def explain_non_finite(
    student: Rows,
    teacher: TeacherRows | None,
    responses: ResponseBatch,
    *,
    names: Sequence[str],
    byte_budget: int,
) -> DataError | None:
    """Return the error to raise for a loss that is not finite: it names the response and the token id.

    `names` are the names of the responses for the message. A teacher that is known in part is not looked at:
    it was finite when it was cached.

    None means that the cause is elsewhere: in another batch or process, or in a weight out of range.
    """
    labels = responses.labels
    columns = student.columns(labels)
    for chunk in row_chunks(student, byte_budget):
        found = _find(student, teacher, chunk=chunk, labels=labels[chunk], columns=columns[chunk])
        if found is not None:
            row, reason = found
            return DataError(f"{_place(responses, names, chunk.start + row)}: {reason}")
    return None


def _find(
    student: Rows,
    teacher: TeacherRows | None,
    *,
    chunk: slice,
    labels: Int[Tensor, " chunk"],
    columns: Int[Tensor, " chunk"],
) -> tuple[int, str] | None:
    """Return the first row of the chunk that is wrong, and what is wrong with it."""
    known: dict[str, Tensor | None] = {"student": student.chunk(chunk).logits()}
    if teacher is not None:
        known["teacher"] = teacher.chunk(chunk).logits()
    logits = {name: values.to(columns.device) for name, values in known.items() if values is not None}
    for name, values in logits.items():
        for row in (values.isnan() | (values == torch.inf)).any(dim=1).nonzero()[:1, 0].tolist():
            return row, f"the {name}'s logits are not finite; did training diverge?"
    lost = {name: values == -torch.inf for name, values in logits.items()}
    for having, lacking in (("student", "teacher"), ("teacher", "student")):
        if "teacher" not in lost:
            break
        for row, column in (lost[lacking] & ~lost[having]).nonzero()[:1].tolist():
            token_id = student.compared.token_id(column)
            return row, (
                f"token id {token_id} is possible for the {having} and impossible for the {lacking}: forward "
                "or reverse KL is infinite; restrict both to the ids they share"
            )
    label_lost = lost["student"].gather(1, columns.clamp_min(0)[:, None])[:, 0] | (columns == OUTSIDE)
    for row in label_lost.nonzero()[:1, 0].tolist():
        return row, f"token id {int(labels[row])} of the response is impossible for the student"
    return None


def _place(responses: ResponseBatch, names: Sequence[str], row: int) -> str:
    response, token = responses.mask.nonzero()[row].tolist()
    return f"response {names[response]}, token {token}"
