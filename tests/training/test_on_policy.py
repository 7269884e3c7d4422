"""Responses that the student writes during a stage: when, by whom, and the same after a kill."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.stages import (
    assert_same,
    config,
    load_images,
    make_items,
    make_stage,
    response,
    stop_after,
    weights,
)
from tests.tiny import fresh, tiny_llava
from vlm_distill.errors import ConfigError, DataError
from vlm_distill.generation.engine import Sampling
from vlm_distill.generation.live import sample_responses
from vlm_distill.generation.transformers_engine import TransformersEngine
from vlm_distill.losses import GKD, DistiLLM, ImitKD
from vlm_distill.records import Example, Response
from vlm_distill.training.responses import Responses
from vlm_distill.training.step import HELD_OUT_KL, Sample, Stage
from vlm_distill.training.train import train
from vlm_distill.training.trainer import Trainer


def live_stage(folder: Path, **settings: object) -> Stage:
    """Return a stage whose student really samples."""
    student = fresh(tiny_llava(0))
    engine = TransformersEngine(
        loaded=student,
        load_images=load_images,
        batch_size=4,
    )

    def sample(examples: Sequence[Example], seed: int) -> list[Response]:
        sampling = Sampling(temperature=1.0, max_new_tokens=3, seed=seed)
        return sample_responses(engine, examples, sampling, batch_size=3)

    items = [replace(item, responses=item.responses[:1]) for item in make_items()]
    return make_stage(folder, **({"student": student, "items": items, "sample": sample} | settings))


def scripted(kl: list[float]) -> dict[str, float]:
    return {HELD_OUT_KL: kl.pop(0) if len(kl) > 1 else kl[0]}


def test_a_fully_on_policy_objective_needs_no_stored_responses(tmp_path: Path) -> None:
    objective = ImitKD().build()
    assert objective.stored_authors == frozenset()
    items = [replace(item, responses=()) for item in make_items()]
    before = weights(tiny_llava(0))
    stage = live_stage(tmp_path, objective=objective, items=items)
    trained = train(config(steps=3), stage, log=print)
    assert 3 * 4 <= trained.tokens <= 3 * 4 * 3
    assert any(not torch.equal(value, before[name]) for name, value in weights(stage.student).items())


def test_the_seed_of_a_step_decides_what_is_sampled(tmp_path: Path) -> None:
    stage = live_stage(tmp_path, objective=ImitKD().build())
    drawn = [
        [item.responses[0].token_ids for item in responses.items(step, [0, 1, 2]).items]
        for responses, step in (
            (Responses(stage=stage, process_index=0, num_processes=1, gather=list), step)
            for step in (0, 0, 1)
        )
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_gkd_mixes_fresh_and_stored_steps_and_says_so(tmp_path: Path) -> None:
    stage = live_stage(tmp_path, objective=GKD(on_policy=0.5).build())
    train(config(steps=12, learning_rate=1e-4), stage, log=print)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    shares = [row["fresh"] for row in rows]
    assert set(shares) == {0.0, 1.0}


def test_a_killed_on_policy_stage_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path) -> None:
    def stage(name: str, kl: list[float]) -> Stage:
        source_settings = {"objective": DistiLLM(capacity=10).build()}
        return live_stage(tmp_path / name, evaluate=lambda: scripted(kl), **source_settings)

    settings = config(steps=12, evaluate_every=1, learning_rate=1e-3)
    losses = [1.0 + 0.2 * number for number in range(12)]
    whole = stage("whole", list(losses))
    trained = train(settings, whole, log=print)
    stop_after(Trainer(settings, stage("cut", list(losses)), print), 9)
    again = stage("cut", losses[8:])
    assert replace(train(settings, again, log=print), seconds=trained.seconds) == trained
    assert_same(weights(whole.student), weights(again.student))
    rows = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert any(row["fresh"] == 1.0 for row in rows)


def test_the_replay_buffer_keeps_the_newest_responses_and_survives_a_checkpoint(tmp_path: Path) -> None:
    stage = live_stage(tmp_path, objective=DistiLLM(capacity=4).build())
    responses = Responses(stage=stage, process_index=0, num_processes=1, gather=list)
    source = stage.objective.source
    for loss in [1.0 + 0.2 * number for number in range(12)]:
        source.observe_validation(loss)
    responses.items(0, [0, 1, 2])
    responses.items(1, [3, 4, 5])
    assert [index for index, _ in responses.buffer] == [2, 3, 4, 5]
    other = Responses(stage=stage, process_index=0, num_processes=1, gather=list)
    other.load_state_dict(json.loads(json.dumps(responses.state_dict())))
    assert other.buffer == responses.buffer


def test_adaptive_off_policy_without_validation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.evaluate_every"):
        Trainer(config(), live_stage(tmp_path, objective=DistiLLM().build()), print)


def test_a_step_whose_every_sample_failed_stops_with_a_reason(tmp_path: Path) -> None:
    nothing: Sample = lambda examples, seed: []  # noqa: E731
    stage = live_stage(tmp_path, objective=ImitKD().build(), sample=nothing)
    with pytest.raises(DataError, match="nothing to train on"):
        train(config(), stage, log=print)


def test_a_failed_sample_is_left_out_and_the_others_are_trained(tmp_path: Path) -> None:
    stage = live_stage(
        tmp_path,
        objective=ImitKD().build(),
        sample=lambda examples, seed: [response(examples[0].id, "student", (10, 11))],
    )
    assert train(config(steps=1), stage, log=print).tokens == 2
