"""The one door to the back ends: what it opens, what it refuses, and how its configs are chosen."""

from dataclasses import replace

import pytest

from tests.engines import engine_of, load_pictures, prompts_of, with_many_stops
from tests.tiny import tiny_llava
from vlm_distill.adapters.adapter import LoadOptions
from vlm_distill.config import Record, decode
from vlm_distill.errors import ConfigError, EngineError
from vlm_distill.generation.backend import Asked, Wanted
from vlm_distill.generation.engine import Engine, Sampling
from vlm_distill.generation.engines import (
    ENGINES,
    AnyEngine,
    live_config,
    opened,
    opened_once,
    require_engine,
)
from vlm_distill.generation.transformers_engine import TransformersEngineConfig
from vlm_distill.generation.vllm_engine import VllmEngineConfig

SAMPLING = Sampling(temperature=0, max_new_tokens=4)


class Generate(Record):
    engine: AnyEngine


def test_every_engine_is_listed_under_its_kind() -> None:
    assert [config().kind for config in ENGINES.values()] == list(ENGINES)


def test_the_config_is_chosen_by_kind_and_a_wrong_key_is_named() -> None:
    values = {"kind": "vllm", "tensor_parallel_size": 2, "max_model_len": 4096}
    engine = decode(Generate, {"engine": values}, where="x").engine
    assert engine == VllmEngineConfig(tensor_parallel_size=2, max_model_len=4096)
    for wrong, message in (
        (
            {"kind": "vllm", "max_model_length": 1},
            r"max_model_length: unknown key; did you mean 'max_model_len'",
        ),
        ({"kind": "vllm", "gpu_memory_utilization": 1.5}, r"gpu_memory_utilization.*got 1\.5"),
        ({"kind": "transformer"}, r"kind: unknown kind 'transformer'; did you mean"),
    ):
        with pytest.raises(ConfigError, match=rf"engine\.{message}"):
            decode(Generate, {"engine": wrong}, where="x")


def test_an_opened_engine_answers_as_asked() -> None:
    plain, prompts = tiny_llava(), prompts_of("llava")
    asked = Asked(loaded=plain, load_images=load_pictures, options=LoadOptions())
    with TransformersEngineConfig(batch_size=2).open(asked) as engine:
        assert isinstance(engine, Engine)
        assert len(engine.plan(prompts, SAMPLING)[0]) == 2
        assert engine.generate(prompts, SAMPLING) == engine_of("llava", loaded=plain).generate(
            prompts, SAMPLING
        )


def test_who_answers_is_told_apart_by_where_it_stops_and_what_it_never_says() -> None:
    asked = Asked(loaded=tiny_llava(), load_images=load_pictures, options=LoadOptions())
    stops = replace(asked, loaded=with_many_stops(asked.loaded))
    others = [stops, replace(asked, suppressed_ids=(7,))]
    assert all(one.identity.key() != asked.identity.key() for one in others)
    turned = replace(stops, loaded=replace(stops.loaded, stop_ids=stops.loaded.stop_ids[::-1]))
    assert turned.identity.key() == stops.identity.key()


def test_a_refusal_begins_with_the_key_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Wanted(loaded=tiny_llava(), options=LoadOptions(), sampling=SAMPLING)
    asked = Asked(loaded=wanted.loaded, load_images=load_pictures, options=wanted.options)
    monkeypatch.setenv("WORLD_SIZE", "2")
    require_engine(TransformersEngineConfig(), wanted, where="--engine")
    with pytest.raises(EngineError, match=r"^evaluate\.engine: vllm works in a job of one process"):
        require_engine(VllmEngineConfig(), wanted, where="evaluate.engine")
    refused = opened(VllmEngineConfig(), asked, where="generate.engine")
    with pytest.raises(EngineError, match=r"^generate\.engine: vllm works in a job of one process"), refused:
        pass
    refused_once = opened_once(VllmEngineConfig(), asked, where="--engine")
    with pytest.raises(EngineError, match=r"^--engine: vllm works"), refused_once as open_engine:
        open_engine()


def test_what_samples_during_training_is_this_process_in_batches_of_its_own() -> None:
    own = TransformersEngineConfig(batch_size=3)
    assert live_config(own) is own
    assert live_config(VllmEngineConfig(batch_size=4096)) == TransformersEngineConfig()


def test_an_engine_for_several_jobs_is_opened_by_the_first_that_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = Asked(loaded=tiny_llava(), load_images=load_pictures, options=LoadOptions())
    with (
        opened_once(TransformersEngineConfig(), asked, where="x") as first,
        first() as engine,
        first() as again,
    ):
        assert again is engine
    monkeypatch.setenv("WORLD_SIZE", "2")
    with opened_once(VllmEngineConfig(), asked, where="x"):
        pass
