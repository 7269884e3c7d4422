import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stages import assert_same, config, make_stage, stop_after, weights
from tests.tiny import fresh, tiny_llava
from vlm_distill.config import decode
from vlm_distill.errors import ConfigError
from vlm_distill.losses import DPO, DistiLLM2, SeqKD
from vlm_distill.training.config import TrainConfig
from vlm_distill.training.micro_batches import ItemLength, cut_by_positions
from vlm_distill.training.reference import reference_log_probs
from vlm_distill.training.train import train
from vlm_distill.training.trainer import Trainer


class Watch:
    """Counts the positions that pass through the language model of a student, by micro-batch."""

    def __init__(self, trainer: Trainer) -> None:
        self.forwards: list[int] = []
        trainer.module.register_forward_pre_hook(lambda *_: self.forwards.append(0))
        language = trainer.stage.student.model.model.language_model
        language.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _: object, __: object, inputs: dict[str, Any]) -> None:
        self.forwards[-1] += inputs["inputs_embeds"].shape[:2].numel()


def trainer_of(folder: Path, objective: Any = None, **settings: object) -> Trainer:
    # In float64, so that a wrong denominator cannot hide behind the rounding of other padding.
    student, teacher = fresh(tiny_llava(0)), fresh(tiny_llava(1, hidden_size=32))
    student.model.double()
    teacher.model.double()
    stage = make_stage(folder, student=student, teacher=teacher, objective=(objective or DistiLLM2()).build())
    settings = {"batch_size": 6, "micro_batch_size": None, "max_grad_norm": 1e9} | settings
    trainer = Trainer(config(**settings), stage, print)
    trainer.optimizer.zero_grad = lambda: None
    return trainer


@pytest.mark.parametrize("objective", [DistiLLM2(), DistiLLM2(reduction="token"), SeqKD()])
def test_a_cut_by_tokens_has_the_loss_and_gradients_of_one_forward(tmp_path: Path, objective) -> None:
    whole = trainer_of(tmp_path / "whole", objective, micro_batch_size=6)
    loss = whole.optimizer_step()["loss_sum"]
    expected = [parameter.grad for parameter in whole.stage.student.model.parameters()]
    for tokens, num_forwards in ((1, 6), (80, 3), (10_000, 1)):
        cut = trainer_of(tmp_path / str(tokens), objective, micro_batch_tokens=tokens)
        watch = Watch(cut)
        assert cut.optimizer_step()["loss_sum"] == pytest.approx(loss, rel=1e-7)
        assert len(watch.forwards) == num_forwards, watch.forwards
        for value, found in zip(expected, cut.stage.student.model.parameters(), strict=True):
            torch.testing.assert_close(found.grad, value, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["cache", "one_sequence"])
def test_no_forward_has_more_positions_than_the_budget_unless_it_is_one_prompt(
    tmp_path: Path, checkpointing: bool
) -> None:
    for tokens in (30, 60, 90, 120):
        trainer = trainer_of(
            tmp_path / str(tokens), micro_batch_tokens=tokens, gradient_checkpointing=checkpointing
        )
        chunks = trainer._micro_batches(trainer.stage.items)
        assert sorted(item.example.id for chunk in chunks for item in chunk) == [f"e{i}" for i in range(6)]
        watch = Watch(trainer)
        counts, _ = trainer._denominators(chunks)
        for chunk in chunks:
            trainer.module(trainer._collate(chunk), counts)
            assert watch.forwards[-1] <= tokens or len(chunk) == 1, (tokens, watch.forwards)


def test_similar_lengths_go_together_in_both_directions() -> None:
    lengths = [
        ItemLength(prompt=prompt, num_responses=1, response=response)
        for prompt, response in [(10, 11), (100, 101), (10, 101), (100, 11)] * 4
    ]
    groups = cut_by_positions(lengths, budget=4 * 110, shares=True)
    assert sorted(i for group in groups for i in group) == list(range(16))
    assert all(len({(lengths[i].prompt, lengths[i].response) for i in group}) == 1 for group in groups)
    assert sorted(map(len, groups)) == [2, 2, 4, 4, 4]


def test_sharded_processes_get_as_many_forwards_as_the_one_with_the_most(tmp_path: Path) -> None:
    cutter = trainer_of(tmp_path, micro_batch_tokens=80).cutter
    items = make_stage(tmp_path).items
    for wanted in range(1, 7):
        chunks = cutter.cut(items, at_least=wanted)
        assert len(chunks) == max(3, wanted)
        assert Counter(item.example.id for chunk in chunks for item in chunk) == Counter(
            item.example.id for item in items
        )
    assert len(cutter.cut(items, at_least=9)) == 6


def test_the_log_has_the_share_of_positions_without_a_token(tmp_path: Path) -> None:
    rows = {}
    for name, settings in {
        "plain": {"micro_batch_size": 6},
        "alone": {"micro_batch_size": 1},
        "tokens": {"micro_batch_size": None, "micro_batch_tokens": 80},
    }.items():
        train(config(steps=1, batch_size=6, **settings), make_stage(tmp_path / name), log=print)
        rows[name] = json.loads((tmp_path / name / "metrics.jsonl").read_text())["padding"]
    # Prompts of 18, 19 and 20 tokens, twice each; the fifth token of the longest response is not forwarded.
    responses = [(1, 1), (2, 3), (3, 5), (4, 2), (1, 4), (2, 1)]
    valid = 2 * (18 + 19 + 20) + sum(min(length, 4) for pair in responses for length in pair)
    assert rows["plain"] == pytest.approx(1 - valid / (6 * 20 + 12 * 4))
    assert 0 < rows["alone"] < rows["tokens"] < rows["plain"]


def test_a_stage_of_grouped_steps_goes_on_as_an_undisturbed_one(tmp_path: Path) -> None:
    settings = {
        "micro_batch_size": None,
        "micro_batch_tokens": 60,
        "group_by_length": True,
        "batch_size": 2,
        "steps": 8,
    }
    whole, again = make_stage(tmp_path / "whole"), make_stage(tmp_path / "cut")
    train(config(**settings), whole, log=print)
    stop_after(Trainer(config(**settings), make_stage(tmp_path / "cut"), print), 5)
    train(config(**settings), again, log=print)
    assert_same(weights(whole.student), weights(again.student))


def test_the_reference_is_scored_in_such_micro_batches_too(tmp_path: Path) -> None:
    tokens = config(micro_batch_size=None, micro_batch_tokens=80)
    plain, cut = (
        reference_log_probs(
            make_stage(tmp_path / name, objective=DPO(reference="start").build()), one, log=print
        )
        for name, one in (("plain", config()), ("cut", tokens))
    )
    assert cut == pytest.approx(plain, rel=1e-5)


def test_one_of_the_two_sizes_is_given() -> None:
    assert TrainConfig(steps=1).micro_batch_size == 32
    assert TrainConfig(steps=1, micro_batch_tokens=100).micro_batch_size is None
    for both in ({"micro_batch_size": 4, "micro_batch_tokens": 9}, {"micro_batch_size": None}):
        with pytest.raises(ConfigError, match="expected one of micro_batch_size and micro_batch_tokens"):
            decode(TrainConfig, {"steps": 1, **both}, where="run.yaml")
    resolved = TrainConfig(steps=1, micro_batch_tokens=100, group_by_length=True)
    assert TrainConfig.model_validate(resolved.model_dump(mode="json")) == resolved


def test_only_the_order_decides_about_the_weights() -> None:
    plain, tokens = TrainConfig(steps=1), TrainConfig(steps=1, micro_batch_tokens=100)
    grouped = TrainConfig(steps=1, group_by_length=True)
    assert plain.decisive() == tokens.decisive()
    assert grouped.decisive() == plain.decisive() | {"group_by_length": True}
