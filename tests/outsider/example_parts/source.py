"""Questions that are made, not read."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from vlm_distill.config import Record
from vlm_distill.data.rows import Row


class Sums(Record):
    """All sums of two numbers below `limit`."""

    kind: Literal["sums"] = "sums"
    limit: int = 10
    label: ClassVar[str] = "sums"
    hub_id: ClassVar[None] = None

    def rows(self) -> Iterator[Row]:
        for a in range(self.limit):
            for b in range(self.limit):
                id = f"sums-{a}-{b}"
                yield Row(id=id, where=id, question=f"{a} + {b}?", references=(str(a + b),))

    def state(self) -> Any:
        return None

    def describe(self) -> str:
        return f"all sums of two numbers below {self.limit}"
