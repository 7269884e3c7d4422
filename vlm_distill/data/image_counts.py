"""How many prompts of a recipe or task have images, by the rows of its sources: no picture is read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import get_args

from vlm_distill.data.bad_rows import RowError
from vlm_distill.data.examples import RecipeSource
from vlm_distill.data.filters import drop_reason
from vlm_distill.data.rows import Row
from vlm_distill.data.sources import KnownSource, SourceConfig
from vlm_distill.data.sources.image_folder import ImageFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageCounts:
    """How many prompts there are, before equal ones are dropped, and how many of them have images."""

    prompts: int
    with_images: int


def count_images(entries: Sequence[RecipeSource]) -> ImageCounts | None:
    """Return the counts of some sources; None, and nothing is read, where no column holds an image.

    Rows that cannot be used are passed over here; who reads them counts them.

    Raises:
        DataError: a source is missing or damaged.
    """
    if not any(_may_have_images(entry.source) for entry in entries):
        return None
    with_images = [bool(row.images) for entry in entries for row in islice(_kept(entry), entry.limit)]
    return ImageCounts(prompts=len(with_images), with_images=sum(with_images))


def _kept(entry: RecipeSource) -> Iterator[Row]:
    for row in entry.source.rows():
        if not isinstance(row, RowError) and drop_reason(entry.filters, row) is None:
            yield row


def _may_have_images(source: SourceConfig) -> bool:
    """Return whether rows may have images: a source of another package does not say it."""
    if not isinstance(source, get_args(KnownSource)) or isinstance(source, ImageFolder):
        return True
    return (source.columns.image, source.columns.images) != (None, None)
