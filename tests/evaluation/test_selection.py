import random

import pytest

from vlm_distill.errors import DataError
from vlm_distill.evaluation.selection import shuffle_images, take_clusters
from vlm_distill.records import Example


def examples_of(sizes: list[int]) -> tuple[list[Example], list[str]]:
    """Return `sizes[i]` questions about image i, interleaved, and their clusters."""
    examples = [
        Example(id=f"{image}-{question}", messages=(), images=(f"image-{image}",))
        for image, size in enumerate(sizes)
        for question in range(size)
    ]
    random.Random(0).shuffle(examples)
    return examples, [example.images[0] for example in examples]


EXAMPLES, CLUSTERS = examples_of([3, 7, 1, 4, 4, 9, 2, 5, 6, 3] * 4)


def taken(limit: int | None) -> set[str]:
    return {example.id for example in take_clusters(EXAMPLES, CLUSTERS, limit=limit)}


@pytest.mark.parametrize("limit", [10, 50, 120])
def test_a_limit_takes_whole_clusters_and_is_never_exceeded(limit: int) -> None:
    sample = take_clusters(EXAMPLES, CLUSTERS, limit=limit)
    assert limit - 9 < len(sample) <= limit
    images = {example.images for example in sample}
    assert len(sample) == sum(example.images in images for example in EXAMPLES)


def test_a_smaller_limit_is_a_subset_and_no_limit_is_everything() -> None:
    assert taken(10) < taken(50) < taken(120) < taken(None) == {example.id for example in EXAMPLES}
    assert taken(len(EXAMPLES)) == taken(None)


def test_the_sample_does_not_depend_on_the_order_of_rows_and_is_not_the_first_ones() -> None:
    order = list(range(len(EXAMPLES)))
    random.Random(1).shuffle(order)
    again = take_clusters([EXAMPLES[i] for i in order], [CLUSTERS[i] for i in order], limit=50)
    assert {example.id for example in again} == taken(50)
    assert taken(50) != {example.id for example in EXAMPLES[:50]}


def test_one_cluster_is_taken_even_if_it_is_larger_than_the_limit() -> None:
    examples, clusters = examples_of([5, 5])
    assert len(take_clusters(examples, clusters, limit=1)) == 5


def test_the_old_order_is_kept() -> None:
    ids = [example.id for example in take_clusters(EXAMPLES, CLUSTERS, limit=50)]
    assert ids == [example.id for example in EXAMPLES if example.id in set(ids)]


def test_no_question_keeps_its_image_and_every_image_is_used_once() -> None:
    shuffled = shuffle_images(EXAMPLES)
    moved = {before.images: after.images for before, after in zip(EXAMPLES, shuffled, strict=True)}
    assert all(before != after for before, after in moved.items())
    assert sorted(moved.values()) == sorted(moved)
    assert [example.id for example in shuffled] == [example.id for example in EXAMPLES]
    assert shuffle_images(EXAMPLES) == shuffled


def test_images_move_only_between_examples_with_as_many_and_text_stays() -> None:
    pair, other = (
        Example(id="a", messages=(), images=("1", "2")),
        Example(id="b", messages=(), images=("2", "1")),
    )
    text = Example(id="c", messages=())
    assert [one.images for one in shuffle_images([pair, text, other])] == [("2", "1"), (), ("1", "2")]


@pytest.mark.parametrize("images", [(), ("same",)])
def test_what_cannot_be_shuffled_is_an_error(images: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="shuffle_images"):
        shuffle_images([Example(id=name, messages=(), images=images) for name in "ab"])
