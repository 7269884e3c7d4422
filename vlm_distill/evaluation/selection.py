"""Which questions of a task are asked: a limit takes whole clusters, and a control run permutes the images.

Both are functions of the content alone: no seed, no dependence on the order of the rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vlm_distill.errors import DataError
from vlm_distill.files import hash_json
from vlm_distill.records import Example


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """At most `limit` questions, of whole clusters; with `shuffle_images` each one about another image."""

    limit: int | None = None
    shuffle_images: bool = False


EVERYTHING = Selection()


def take_clusters(
    examples: Sequence[Example], clusters: Sequence[str], *, limit: int | None
) -> list[Example]:
    """Return the examples of whole clusters, at most `limit` but at least one cluster, in their old order.

    Clusters are drawn in the order of their hashes: a smaller limit is a subset of a larger one, and the
    sample is the same on every machine and for every order of the rows.
    """
    if limit is None or limit >= len(examples):
        return list(examples)
    sizes: dict[str, int] = {}
    for cluster in clusters:
        sizes[cluster] = sizes.get(cluster, 0) + 1
    taken: set[str] = set()
    num_taken = 0
    for cluster in sorted(sizes, key=hash_json):
        # A later, smaller cluster that would fit is not taken: it would make small clusters more likely.
        if taken and num_taken + sizes[cluster] > limit:
            break
        taken.add(cluster)
        num_taken += sizes[cluster]
    return [example for example, cluster in zip(examples, clusters, strict=True) if cluster in taken]


def shuffle_images(examples: Sequence[Example]) -> list[Example]:
    """Return the examples with the images of others: each distinct image (or tuple of them) becomes another.

    All questions about one image move to the same other image. Examples without images stay as they are;
    among examples with the same number of images the distinct ones form one cycle, so none keeps its own.

    Raises:
        DataError: all examples with some number of images have the same ones, or no example has an image.
    """
    counts = sorted({len(example.images) for example in examples} - {0})
    if not counts:
        raise DataError(
            "shuffle_images: expected examples with images, got none; leave it out for text-only tasks"
        )
    successor: dict[tuple[str, ...], tuple[str, ...]] = {(): ()}
    for count in counts:
        distinct = {example.images for example in examples if len(example.images) == count}
        if len(distinct) == 1:
            raise DataError(
                f"shuffle_images: expected different images among the examples with {count} image(s), "
                "got one; raise the limit"
            )
        cycle = sorted(distinct, key=hash_json)
        successor.update(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    return [replace(example, images=successor[example.images]) for example in examples]
