"""One row that cannot be used: an error that a source may yield in its place, and why it is counted."""

from functools import partial
from typing import Any, Literal, get_args

from vlm_distill.errors import DataError

OnBadRow = Literal["stop", "skip"]
Reason = Literal[
    "broken_row",
    "missing_cell",
    "wrong_cell",
    "bad_conversation",
    "bad_prompt",
    "bad_text",
    "bad_image",
    "repeated_id",
]
REASONS: tuple[Reason, ...] = get_args(Reason)


class RowError(DataError):
    """One row cannot be used, the others can; `reason` is the name of its count.

    An exception inside a generator would end it, so what iterates over rows yields this error in place of the
    row and goes on; whoever counts rows (examples.py) raises it or leaves the row out.
    """

    def __init__(self, message: str, *, reason: Reason):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors go from one process to the others.
        return partial(RowError, reason=self.reason), self.args
