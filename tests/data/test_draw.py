import random

from vlm_distill.data.draw import draw
from vlm_distill.records import Example

EXAMPLES = [Example(id=f"e{number}", messages=()) for number in range(40)]


def drawn(size: int, *, seed: int = 0) -> list[str]:
    return [example.id for example in draw(EXAMPLES, size, seed=seed)]


def test_a_draw_stays_the_same_for_ever() -> None:
    assert drawn(5) == ["e0", "e10", "e11", "e28", "e35"]


def test_the_old_order_is_kept_and_a_smaller_draw_is_a_part_of_a_larger_one() -> None:
    ids = [example.id for example in EXAMPLES]
    assert drawn(20) == [id for id in ids if id in set(drawn(20))]
    assert set(drawn(5)) < set(drawn(20)) < set(ids)
    assert drawn(100) == ids


def test_the_draw_depends_on_seed_and_ids_and_not_on_the_order() -> None:
    shuffled = random.Random(0).sample(EXAMPLES, len(EXAMPLES))
    assert {example.id for example in draw(shuffled, 5, seed=0)} == set(drawn(5))
    assert drawn(5) != drawn(5, seed=1)
