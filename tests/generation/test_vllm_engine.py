"""What needs no vllm; what runs it is in test_vllm_running.py."""

from typing import Annotated

import pytest
from pydantic import Field

from tests.engines import KINDS, VLLM_INSTALLED, load_pictures, prompts_of, vllm_engine_of
from tests.tiny import tiny_llava, tiny_text_model
from vlm_distill.config import Record, decode
from vlm_distill.errors import ConfigError, EngineError
from vlm_distill.generation.engine import Engine, EngineConfig, Sampling, VllmEngineConfig
from vlm_distill.generation.vllm_engine import require_vllm, row_seed


class Generate(Record):
    engine: Annotated[EngineConfig, Field(discriminator="kind")]


def test_the_config_is_chosen_by_kind_and_a_wrong_key_is_named() -> None:
    values = {"kind": "vllm", "tensor_parallel_size": 2, "max_model_len": 4096}
    engine = decode(Generate, {"engine": values}, where="x").engine
    assert engine == VllmEngineConfig(tensor_parallel_size=2, max_model_len=4096)
    with pytest.raises(
        ConfigError, match=r"engine\.max_model_length: unknown key; did you mean 'max_model_len'"
    ):
        decode(Generate, {"engine": {"kind": "vllm", "max_model_length": 1}}, where="x")
    with pytest.raises(ConfigError, match=r"engine\.gpu_memory_utilization.*got 1\.5"):
        decode(Generate, {"engine": {"kind": "vllm", "gpu_memory_utilization": 1.5}}, where="x")


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
    with pytest.raises(EngineError, match=r"example 2: 2 images, but generate\.engine\.limit_images is 1"):
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


@pytest.mark.skipif(VLLM_INSTALLED, reason="vllm is installed")
def test_a_missing_vllm_is_one_line_with_the_command_that_installs_it() -> None:
    with pytest.raises(EngineError, match=r"pip install 'vlm-distill\[vllm\]'") as error:
        require_vllm()
    assert "\n" not in str(error.value)
    engine = vllm_engine_of(tiny_text_model())
    with pytest.raises(EngineError, match="vllm is not installed"):
        engine.generate(prompts_of("text"), Sampling(max_new_tokens=2))
    engine.close()


def test_a_run_of_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(EngineError, match=r"vllm works in a run of one process.*tensor_parallel_size"):
        vllm_engine_of(tiny_text_model()).generate(prompts_of("text")[:1], Sampling(max_new_tokens=2))
