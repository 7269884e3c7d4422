import pytest
import torch
from transformers import DynamicCache

from tests.engines import KINDS, engine_of, prompts_of, run_plan
from vlm_distill.generation import decoding
from vlm_distill.generation.engine import Sampling
from vlm_distill.generation.growing_cache import SPARE, GrowingLayer, grow_in_place


def states(seed: int, *, rows: int, tokens: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(rows, 2, tokens, size, generator=generator) for size in (4, 6))
    return keys, values


def test_it_holds_what_the_cache_of_transformers_holds_and_copies_it_only_when_it_must() -> None:
    growing, plain = DynamicCache(), DynamicCache()
    for cache in (growing, plain):
        cache.update(*states(0, rows=3, tokens=5), 0)
    grow_in_place(growing)
    assert isinstance(growing.layers[0], GrowingLayer)
    places = []
    for step in range(2 * SPARE + 10):
        if step == 20:
            for cache in (growing, plain):
                cache.reorder_cache(torch.tensor([2, 0]))
        rows = 3 if step < 20 else 2
        found, expected = (cache.update(*states(step, rows=rows), 0) for cache in (growing, plain))
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        assert growing.get_seq_length() == plain.get_seq_length() == 6 + step
        places.append(growing.layers[0].keys.data_ptr())
    # A buffer at first, one after rows were taken out, and a third when that one was full.
    assert sum(one != other for one, other in zip(places[1:], places, strict=False)) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_responses_are_bit_for_bit_those_of_the_cache_of_transformers(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = Sampling(temperature=1.0, max_new_tokens=30, num_samples=3, seed=5)
    growing = run_plan(engine_of(kind, batch_size=12), prompts_of(kind), sampling)
    monkeypatch.setattr(decoding, "grow_in_place", lambda cache: None)
    assert run_plan(engine_of(kind, batch_size=12), prompts_of(kind), sampling) == growing
    assert len({len(one.token_ids) for one in growing.values()}) > 3
