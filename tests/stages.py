"""A training stage in miniature, and what tests ask of one."""

from pathlib import Path

import pytest
import torch
from PIL import Image as Picture

from tests.tiny import example, fresh, picture, tiny_llava
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.alignment.alignment import ALL_IDS
from vlm_distill.batches import TrainItem
from vlm_distill.losses import DistiLLM2
from vlm_distill.records import Author, Example, Response, response_id
from vlm_distill.training.config import TrainConfig
from vlm_distill.training.step import Stage
from vlm_distill.training.trainer import Trainer

COLORS = ("red", "green", "blue", "teal", "black", "gray")


def response(example_id: str, author: Author, ids: tuple[int, ...], sample_index: int = 0) -> Response:
    return Response(
        id=response_id(example_id, author, round=1, sample_index=sample_index),
        example_id=example_id,
        author=author,
        round=1,
        sample_index=sample_index,
        text="",
        token_ids=ids,
        finish="stop",
        model_fingerprint="m",
    )


def load_images(one: Example) -> list[Picture.Image]:
    """Return the pictures of an item of `make_items`: a colour a prompt."""
    return [picture(COLORS[int(one.id[1:]) % 6]) for _ in one.images]


def make_items(count: int = 6, *, num_images: int = 1) -> list[TrainItem]:
    items = []
    for index in range(count):
        name = f"e{index}"
        # Unequal lengths, so that a wrong denominator shows.
        teacher = response(name, "teacher", tuple(range(10, 11 + index % 4)))
        student = response(name, "student", tuple(range(30, 31 + (2 * index) % 5)))
        question = example(name, "What color is the shape?" + " blue" * (index % 3), num_images=num_images)
        items.append(TrainItem(example=question, responses=(teacher, student)))
    return items


def make_stage(
    folder: Path,
    *,
    student: LoadedModel | None = None,
    teacher: LoadedModel | None = None,
    **settings: object,
) -> Stage:
    fields = {
        "student": student or fresh(tiny_llava(0)),
        "teacher": teacher or tiny_llava(1, hidden_size=32),
        "alignment": ALL_IDS,
        "objective": DistiLLM2().build(),
        "items": make_items(),
        "load_images": load_images,
        "folder": folder,
        "key": "key",
        "label": "test",
        "seed": 1,
        **settings,
    }
    return Stage(**fields)


def config(**settings: object) -> TrainConfig:
    fields = {
        "steps": 6,
        "batch_size": 4,
        "micro_batch_size": 4,
        "learning_rate": 1e-2,
        "checkpoint_every": 2,
        "log_every": 1,
    }
    return TrainConfig(**(fields | settings))


def weights(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in loaded.model.state_dict().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


class KilledError(RuntimeError):
    """Stands for a kill in a test that looks at what was left."""


def stop_after(trainer: Trainer, steps: int) -> None:
    real = trainer.optimizer_step

    def step() -> dict[str, float]:
        if trainer.step == steps:
            raise KilledError
        return real()

    trainer.optimizer_step = step
    with pytest.raises(KilledError):
        trainer.run()
