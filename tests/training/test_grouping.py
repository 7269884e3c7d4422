import random

import pytest

from vlm_distill.training.items import TrainOrder


def lengths_of(count: int) -> list[tuple[int, int]]:
    source = random.Random(0)
    return [(source.randint(20, 200), source.randint(1, 300)) for _ in range(count)]


def plan(count: int, *, batch_size: int = 8, seed: int = 0) -> TrainOrder:
    return TrainOrder(num_items=count, batch_size=batch_size, seed=seed, lengths=lengths_of(count))


@pytest.mark.parametrize(
    ("count", "batch_size"), [(1003, 8), (10, 3), (4, 9), (5, 5), (1, 4), (64, 8), (3000, 4)]
)
def test_every_epoch_holds_every_item_once(count: int, batch_size: int) -> None:
    one = plan(count, batch_size=batch_size)
    steps = [one.step(number) for number in range(1 + 3 * count // batch_size)]
    assert {len(step) for step in steps} == {batch_size}
    order = [index for step in steps for index in step]
    for epoch in range(3):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_steps_hold_similar_prompts_and_similar_responses_except_where_epochs_meet() -> None:
    count, size = 4003, 8
    one, lengths = plan(count, batch_size=size), lengths_of(count)
    spreads = []
    for number in range(2 * count // size):
        step = [lengths[index] for index in one.step(number)]
        spreads.append([max(values) - min(values) for values in zip(*step, strict=True)])
    last, next_last = count // size, 2 * count // size
    inside = [spread for number, spread in enumerate(spreads) if number not in (last, next_last)]
    # 64 steps are cut into 8 strips by prompts and 8 by responses: an eighth of 180 and of 300 tokens.
    assert max(prompt for prompt, _ in inside) < 2 * 180 / 8
    assert sum(prompt for prompt, _ in inside) / len(inside) < 1.1 * 180 / 8
    assert sum(response for _, response in inside) / len(inside) < 1.2 * 300 / 8


def test_a_step_follows_from_its_number_and_the_seed() -> None:
    one = plan(1003)
    forwards = {number: one.step(number) for number in range(300)}
    assert all(plan(1003).step(number) == forwards[number] for number in (299, 0, 126, 125, 200))
    assert plan(1003, seed=1).step(0) != forwards[0]
    assert sorted(forwards[0]) != sorted(forwards[125 + 1])


def test_long_and_short_steps_are_mixed() -> None:
    one, lengths = plan(4000), lengths_of(4000)
    means = [sum(lengths[index][0] for index in one.step(number)) / 8 for number in range(500)]
    for start in range(0, 500, 100):
        assert 90 < sum(means[start : start + 100]) / 100 < 130
