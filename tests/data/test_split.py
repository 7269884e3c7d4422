from vlm_distill.data.dataset import used_images
from vlm_distill.data.split import Split, split_examples
from vlm_distill.files import sha256_bytes
from vlm_distill.records import Example, Message, Text


def example(name: str, *images: str) -> Example:
    hashes = tuple(sha256_bytes(image.encode()) for image in images)
    return Example(id=name, messages=(Message(role="user", content=(Text(text=name),)),), images=hashes)


EXAMPLES = [example(f"{image}-{n}", str(image)) for image in range(500) for n in range(3)]


def test_no_image_is_on_both_sides_and_nothing_is_lost() -> None:
    train, held_out = split_examples(EXAMPLES, Split(held_out=0.2))
    assert not used_images(train) & used_images(held_out)
    assert sorted(train + held_out, key=lambda one: one.id) == sorted(EXAMPLES, key=lambda one: one.id)
    assert 70 <= len(used_images(held_out)) <= 130


def test_examples_that_are_linked_through_images_stay_together() -> None:
    chain = [example(f"chain {n}", f"p{n}", f"p{n + 1}") for n in range(40)]
    sides = {len(part) for part in split_examples(chain, Split(held_out=0.5))}
    assert sides == {0, 40}


def test_the_side_of_an_example_does_not_depend_on_the_others() -> None:
    _, held_out = split_examples(EXAMPLES, Split(held_out=0.2))
    _, of_some = split_examples(EXAMPLES[600:900], Split(held_out=0.2))
    assert of_some == [one for one in EXAMPLES[600:900] if one in held_out]


def test_another_seed_is_another_draw() -> None:
    assert split_examples(EXAMPLES, Split(held_out=0.2)) != split_examples(
        EXAMPLES, Split(held_out=0.2, seed=1)
    )


def test_a_larger_fraction_only_adds_to_the_held_out_part() -> None:
    small, large = (split_examples(EXAMPLES, Split(held_out=fraction))[1] for fraction in (0.1, 0.3))
    assert {one.id for one in small} < {one.id for one in large}


def test_equal_prompts_without_images_are_on_one_side() -> None:
    texts = [
        Example(id=f"{n}", messages=(Message(role="user", content=(Text(text=f"q{n % 50}"),)),))
        for n in range(200)
    ]
    train, held_out = split_examples(texts, Split(held_out=0.3))
    assert held_out
    assert not {one.prompt_hash() for one in train} & {one.prompt_hash() for one in held_out}


def test_by_id_an_image_may_be_on_both_sides() -> None:
    train, held_out = split_examples(EXAMPLES, Split(held_out=0.2, by="id"))
    assert used_images(train) & used_images(held_out)


def test_nothing_is_held_out_by_default() -> None:
    assert split_examples(EXAMPLES, Split()) == (EXAMPLES, [])
