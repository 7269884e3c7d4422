import pytest
import torch

from tests.stages import response
from tests.tiny import example
from vlm_distill.batches import pad_responses
from vlm_distill.errors import DataError
from vlm_distill.records import AUTHORS
from vlm_distill.training.items import TrainOrder, build_items


@pytest.mark.parametrize(("num_items", "batch_size"), [(10, 3), (4, 9), (5, 5), (1, 4)])
def test_steps_run_through_one_permutation_after_the_other(num_items: int, batch_size: int) -> None:
    plan = TrainOrder(num_items=num_items, batch_size=batch_size, seed=3)
    steps = [plan.step(number) for number in range(12)]
    assert {len(step) for step in steps} == {batch_size}
    order = [index for step in steps for index in step]
    for start in range(0, len(order) - num_items, num_items):
        assert sorted(order[start : start + num_items]) == list(range(num_items))


def test_every_epoch_is_a_new_permutation_of_all_items() -> None:
    plan = TrainOrder(num_items=7, batch_size=7, seed=0)
    first, second = plan.step(0), plan.step(1)
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second
    assert first != TrainOrder(num_items=7, batch_size=7, seed=1).step(0)


def test_items_join_by_id_and_leave_out_prompts_without_every_author() -> None:
    examples = [example(name, "?") for name in "abc"]
    responses = [
        response("c", "student", (1,)),
        response("a", "student", (2,)),
        response("a", "teacher", (3, 4)),
        response("b", "teacher", (5,)),
        response("a", "reference", (9,)),
    ]
    items, missing = build_items(examples, responses, authors=frozenset({"teacher", "student"}))
    assert [[one.author for one in item.responses] for item in items] == [["teacher", "student"]]
    assert (items[0].example.id, items[0].num_tokens, missing) == ("a", 3, 2)
    with pytest.raises(DataError, match="expected examples with responses by reference"):
        build_items(examples, responses[:2], authors=frozenset({"reference"}))


def test_a_response_without_its_example_is_an_error() -> None:
    with pytest.raises(DataError, match="'lost'"):
        build_items([example("a", "?")], [response("lost", "teacher", (1,))], authors=frozenset({"teacher"}))


def test_padding_keeps_ids_order_prompt_and_author() -> None:
    batch = pad_responses(
        [
            [response("a", "teacher", (5, 6, 7)), response("a", "student", (8,))],
            [response("b", "teacher", (9, 4))],
        ]
    )
    assert batch.prompt_index.tolist() == [0, 0, 1]
    assert batch.labels.tolist() == [5, 6, 7, 8, 9, 4]
    assert [AUTHORS[index] for index in batch.author] == ["teacher", "student", "teacher"]
    assert torch.equal(batch.num_tokens, torch.tensor([3, 1, 2]))
