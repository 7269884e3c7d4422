"""What needs no vllm; what runs it is in test_vllm_running.py."""

import pytest

from tests.engines import KINDS, load_pictures, prompts_of, vllm_engine_of
from tests.tiny import tiny_llava, tiny_text_model
from vlm_distill.errors import EngineError
from vlm_distill.generation.engine import Engine, Sampling
from vlm_distill.generation.vllm_engine import row_seed


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_keeps_the_order_and_leaves_out_what_does_not_fit(kind: str) -> None:
    loaded = tiny_text_model() if kind == "text" else tiny_llava()
    examples, engine = prompts_of(kind), vllm_engine_of(loaded)
    assert isinstance(engine, Engine)
    assert engine.plan(examples, Sampling(num_samples=2)) == [[0, 1], [2, 3], [4, 5]]
    lengths = [loaded.encode([one], [load_pictures(one)]).input_ids.shape[1] for one in examples]
    room = sorted(lengths)[2] + 10
    small = vllm_engine_of(loaded, max_model_len=room)
    planned = [i for batch in small.plan(examples, Sampling(max_new_tokens=10)) for i in batch]
    assert planned == [i for i, length in enumerate(lengths) if length <= sorted(lengths)[2]]
    positions = loaded.model.config.get_text_config().max_position_embeddings
    unlimited = vllm_engine_of(loaded, max_model_len=None)
    assert unlimited.plan(examples, Sampling(max_new_tokens=positions)) == []


def test_the_plan_refuses_what_vllm_would_refuse_or_change_silently() -> None:
    engine = vllm_engine_of(tiny_llava(), limit_images=1)
    with pytest.raises(EngineError, match="example 2: 2 images, but limit_images of the engine is 1"):
        engine.plan(prompts_of("llava"), Sampling())
    for temperature in (0.001, 2.5):
        with pytest.raises(EngineError, match=r"between 0\.01 and 2\.0"):
            engine.plan(prompts_of("llava")[:1], Sampling(temperature=temperature))


def test_settings_name_what_the_answers_may_depend_on_and_not_the_batch_size() -> None:
    engine, larger = vllm_engine_of(tiny_llava()), vllm_engine_of(tiny_llava(), batch_size=64)
    assert engine.settings == larger.settings
    expected = {"kind": "vllm", "dtype": "float32", "max_model_len": "512"}
    assert {**engine.settings, "version": ""} == {**expected, "version": ""}


def test_row_seeds_differ_by_example_sample_and_seed_and_fit_an_int64() -> None:
    seeds = [
        row_seed(name, index, Sampling(seed=seed)) for name in "ab" for index in range(3) for seed in range(2)
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert row_seed("a", 1, Sampling(seed=4)) == row_seed("a", 1, Sampling(seed=4, temperature=0.5))
