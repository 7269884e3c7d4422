"""What is asked of compared ids: a range and a list of the same ids answer alike, and a list in any order."""

import json

import pytest
import torch
from torch import Tensor

from vlm_distill.losses import ComparedIds, IdList, IdRange

WIDTH = 7
CASES = {
    "all": (IdRange(), range(WIDTH)),
    "range": (IdRange(start=2, stop=5), (2, 3, 4)),
    "beyond": (IdRange(start=5, stop=9), (5, 6)),
    "list": (IdList(ids=torch.tensor([2, 3, 4])), (2, 3, 4)),
    "permuted": (IdList(ids=torch.tensor([6, 0, 3])), (6, 0, 3)),
}
every_case = pytest.mark.parametrize(("compared", "ids"), CASES.values(), ids=CASES.keys())


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@every_case
def test_column_c_is_the_cth_of_the_ids_and_no_other_id_has_a_column(
    compared: ComparedIds, ids: tuple[int, ...]
) -> None:
    assert compared.size(WIDTH) == len(ids)
    assert [compared.token_id(column) for column in range(len(ids))] == list(ids)
    expected = [list(ids).index(one) if one in ids else -1 for one in range(WIDTH)]
    assert compared.columns(torch.arange(WIDTH), WIDTH).tolist() == expected


@every_case
def test_the_product_with_a_part_of_the_layer_has_the_ids_as_its_columns(
    compared: ComparedIds, ids: tuple[int, ...]
) -> None:
    hidden, weight = numbers(3, 4), numbers(WIDTH, 4)
    found = compared.select(hidden @ compared.part(weight).T)
    torch.testing.assert_close(found, (hidden @ weight.T)[:, list(ids)])


@every_case
def test_a_gradient_is_spread_to_the_ids_that_it_belongs_to(
    compared: ComparedIds, ids: tuple[int, ...]
) -> None:
    projected = numbers(3, len(compared.part(torch.zeros(WIDTH)))).requires_grad_()
    gradient = numbers(3, len(ids))
    (expected,) = torch.autograd.grad(compared.select(projected), projected, gradient)
    torch.testing.assert_close(compared.spread(gradient, projected.detach()), expected)


@every_case
def test_a_token_beyond_the_layer_stands_nowhere(compared: ComparedIds, ids: tuple[int, ...]) -> None:
    assert compared.columns(torch.tensor([-1, WIDTH, WIDTH + 9]), WIDTH).tolist() == [-1, -1, -1]


def test_ids_that_have_no_column_of_their_own_are_refused() -> None:
    for ids in ([1, 1], [-1, 2]):
        with pytest.raises(AssertionError):
            IdList(ids=torch.tensor(ids))
    with pytest.raises(AssertionError):
        IdList(ids=torch.tensor([0, WIDTH])).size(WIDTH)
    with pytest.raises(AssertionError):
        IdRange(start=-3)


def test_lists_can_be_compared_and_hashed() -> None:
    first, second = (IdList(ids=torch.tensor([0, 1])) for _ in range(2))
    assert len({first, second}) == 2
    assert first != second


def test_a_range_copies_neither_layer_nor_logits_nor_gradient() -> None:
    compared, layer = IdRange(start=1, stop=4), numbers(WIDTH, 2)
    assert compared.part(layer).data_ptr() == layer[1:].data_ptr()
    assert compared.select(layer) is layer
    assert compared.spread(layer, layer) is layer


def test_keys_are_json_and_tell_the_ids_and_their_order_apart() -> None:
    orders = (IdList(ids=torch.tensor(ids)) for ids in ([0, 1], [1, 0], [0, 2]))
    keys = [one.key(WIDTH) for one in (IdRange(), IdRange(stop=2), *orders)]
    assert len({json.dumps(key) for key in keys}) == len(keys)
    assert keys[:2] == [[0, WIDTH], [0, 2]]
