"""A student with its teacher's tokens under other ids learns what one with the teacher's ids learns."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from tests.permuted import permuted, random_places
from tests.stages import config, load_images, make_items, make_stage
from tests.tiny import fresh, tiny_llava, tiny_text_model, with_width
from tests.tiny_qwen import tiny_qwen
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.alignment.pair import align
from vlm_distill.batches import TrainItem
from vlm_distill.losses import DPO, KD, TAID, DistiLLM2, JensenShannon, SeqKD, SimPER
from vlm_distill.teacher_cache.fill import CachePlan, cached_by_author
from vlm_distill.teacher_cache.tiers import CacheConfig
from vlm_distill.training.reference import reference_log_probs
from vlm_distill.training.trainer import Trainer

NAMES = {"teacher": "teacher", "student": "student_round_1"}
PAIRS = {
    "text": lambda: (tiny_text_model(1, hidden_size=32), tiny_text_model(0)),
    "padded": lambda: (with_width(tiny_text_model(1), 320), with_width(tiny_text_model(0), 304)),
    "llava": lambda: (tiny_llava(1, hidden_size=32), tiny_llava(0)),
    "qwen2_vl": lambda: (tiny_qwen("qwen2_5_vl", seed=1), tiny_qwen("qwen2_vl", vocab_size=272)),
}
OBJECTIVES = {
    "skewed, on responses of both": DistiLLM2(),
    "forward": KD(),
    "jensen shannon": KD(divergence=JensenShannon()),
    "interpolated": TAID(),
    "labels": SeqKD(),
    "simper": SimPER(),
    "dpo": DPO(),
    "dpo from the teacher": DPO(reference="teacher"),
}


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What the first step of a stage computes."""

    loss: float
    gradients: dict[str, torch.Tensor]


def moved_items(items: list[TrainItem], places: torch.Tensor) -> list[TrainItem]:
    """Return the items with their responses in the ids of the permuted student."""
    return [
        replace(
            item,
            responses=tuple(
                replace(one, token_ids=tuple(int(places[token]) for token in one.token_ids))
                for one in item.responses
            ),
        )
        for item in items
    ]


def learned(
    folder: Path,
    teacher: LoadedModel,
    student: LoadedModel,
    items: list[TrainItem],
    objective: object,
    cache: CacheConfig | None = None,
) -> Learned:
    student, teacher = fresh(student), fresh(teacher)
    # In float64 rounding cannot hide a difference.
    student.model.double(), teacher.model.double()
    alignment, built = align(teacher, student), objective.build()
    plan = CachePlan(
        config=cache or CacheConfig(),
        folder=folder / "cache",
        light=teacher,
        body=lambda: teacher,
        alignment=alignment,
        student_width=len(student.head.weight),
        load_images=load_images,
        log=print,
    )
    stage = make_stage(
        folder,
        student=student,
        teacher=teacher,
        alignment=alignment,
        items=items,
        objective=built,
        cache=cached_by_author(plan, items, names=NAMES) if cache else None,
    )
    settings = config(batch_size=6, micro_batch_size=3, max_grad_norm=1e9)
    if built.needs_reference_model:
        stage = replace(stage, reference_log_probs=reference_log_probs(stage, settings, log=print))
    trainer = Trainer(settings, stage, print)
    trainer.optimizer.zero_grad = lambda: None
    loss = trainer.optimizer_step()["loss_sum"]
    named = student.model.named_parameters()
    return Learned(loss=loss, gradients={name: one.grad for name, one in named if one.grad is not None})


def assert_same_lesson(tmp_path: Path, pair: str, objective: object, cache: CacheConfig | None) -> None:
    teacher, student = PAIRS[pair]()
    items = make_items(num_images=1 if teacher.image_token_ids else 0)
    places = random_places(student)
    expected = learned(tmp_path / "same", teacher, student, items, objective, cache)
    moved = permuted(student, places)
    found = learned(tmp_path / "moved", teacher, moved, moved_items(items, places), objective, cache)
    assert found.loss == pytest.approx(expected.loss, rel=1e-9)
    assert found.gradients.keys() == expected.gradients.keys()
    width, largest = len(places), max(float(one.abs().max()) for one in expected.gradients.values())
    assert largest > 0
    for name, value in expected.gradients.items():
        # Rows of embeddings and output layer are where their tokens are now.
        moved_back = found.gradients[name][places] if len(value) == width else found.gradients[name]
        torch.testing.assert_close(moved_back, value, rtol=0, atol=1e-9 * largest, msg=name)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("pair", ["text", "llava"])
def test_loss_and_gradient_are_those_of_the_same_ids(tmp_path: Path, pair: str, objective: object) -> None:
    assert_same_lesson(tmp_path, pair, objective, None)


@pytest.mark.parametrize("pair", ["padded", "qwen2_vl"])
def test_padding_and_axes_of_positions_change_nothing_of_it(tmp_path: Path, pair: str) -> None:
    assert_same_lesson(tmp_path, pair, DistiLLM2(), None)


@pytest.mark.parametrize("tier", ["hidden", "top_k", "sampled"])
def test_every_tier_of_the_cache_holds_what_the_teacher_says_of_the_same_tokens(
    tmp_path: Path, tier: str
) -> None:
    objective = DPO(reference="teacher") if tier == "sampled" else DistiLLM2()
    assert_same_lesson(tmp_path, "llava", objective, CacheConfig(tier=tier, k=5))
