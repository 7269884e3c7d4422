"""Training from the teacher cache against a live teacher: time of a step and memory.

    python benchmarks/teacher_cache.py --repeats 5

A LLaVA pair built from configs, random weights, the teacher with the student's depth and twice its
width in language model and tower: four times its cost. Every prompt has 576 image tokens, about 32 of text
and two responses of 48. Both variants train the same student through the package's own trainer, DistiLLM-2,
one prompt a step. The cache is filled before, so each step is one of a second epoch; a process that had to
compute a row again would fail. Every variant runs in processes of its own, in turns (side_by_side.py).
cache_tiers.py has size and error.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image as Picture
from PIL import ImageDraw
from side_by_side import add_options, compare, machine, measure, table

from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.alignment.alignment import ALL_IDS
from vlm_distill.batches import TrainItem
from vlm_distill.losses import DistiLLM2
from vlm_distill.models.load import load_model
from vlm_distill.models.output_layer import light_model
from vlm_distill.models.save import save_model
from vlm_distill.records import Author, Example, Image, Message, Response, Text, response_id
from vlm_distill.students.build import BuildConfig, build_llava
from vlm_distill.teacher_cache.fill import CachePlan, fill_cache
from vlm_distill.teacher_cache.store import CacheReader
from vlm_distill.teacher_cache.tiers import CacheConfig
from vlm_distill.training.config import Trainable, TrainConfig
from vlm_distill.training.step import Stage
from vlm_distill.training.trainer import Trainer

LIVE = "live teacher"
VARIANTS = (LIVE, "from the cache")
TEACHER, STUDENT, PAIRS = "teacher", "student", "pairs"
IMAGE_SIZE, PATCH_SIZE, RESPONSE_TOKENS = 336, 14, 48
QUESTION = "Describe the picture: how many shapes does it show, of which colour, and where are they?"
TEXTS = (
    QUESTION,
    "What shape is in the image?",
    "Is there a red circle? yes no blue green triangle rectangle",
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--steps", type=int, default=4, help="timed steps in a process, after one that is not"
    )
    parser.add_argument("--prompts", type=int, default=2, help="prompts of an epoch, one a step")
    parser.add_argument("--width", type=int, default=192, help="of the student's language model")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    add_options(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.variant:
        print(json.dumps(timed(options.variant, options.folder, options.prompts, options.steps)))
        return
    print(machine(), f"{options.threads} threads", sep="; ", end="\n\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(prepare(folder, options.width, options.prompts), end="\n\n")
        given = [f"--{one}={getattr(options, one)}" for one in ("prompts", "steps", "threads")]
        rows = compare(VARIANTS, options, *given, f"--folder={folder}")
    print(table(rows, {"seconds": ".3f", "resident_mib": ".0f"}))
    live, cached = (row["seconds"] for row in rows)
    print(f"\nA step from the cache takes {cached / live:.2f} of one with a live teacher.")


def build(width: int, seed: int, like: LoadedModel | None = None) -> LoadedModel:
    vision = {
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "width": width // 3,
        "layers": 6,
        "heads": 4,
    }
    language = {"hidden_size": width, "num_hidden_layers": 6, "num_attention_heads": 4}
    config = BuildConfig.model_validate(
        {
            "vision": vision,
            "language": {**language, "intermediate_size": 3 * width, "max_position_embeddings": 1024},
            "tokenizer": "teacher" if like else {"train": {"vocab_size": 512}},
            "vision_feature_layer": -1,
        }
    )
    return build_llava(config, teacher=like, texts=TEXTS, seed=seed)


def draw(index: int, size: int) -> Picture.Image:
    picture = Picture.new("RGB", (size, size), "white")
    color = ("red", "green", "blue", "teal", "black", "gray", "brown", "yellow")[index % 8]
    place = [size // 5 + index % 7, size // 4, 3 * size // 4, 3 * size // 4 - index % 5]
    pen = ImageDraw.Draw(picture)
    (pen.ellipse if index % 2 else pen.rectangle)(place, fill=color)
    return picture


def prompt(index: int, question: str) -> Example:
    message = Message(role="user", content=(Image(), Text(text=question)))
    return Example(id=f"e{index}", messages=(message,), images=(f"picture-{index}",))


def answer(example: Example, author: Author, ids: Sequence[int]) -> Response:
    return Response(
        id=response_id(example.id, author, round=1, sample_index=0),
        example_id=example.id,
        author=author,
        round=1,
        sample_index=0,
        text="",
        token_ids=tuple(ids),
        finish="length",
        model_fingerprint="made up",
    )


def plan_of(folder: Path, teacher: Path | str, config: CacheConfig, size: int) -> CachePlan:
    light = light_model(str(teacher), LoadOptions())
    return CachePlan(
        config=config,
        folder=folder,
        light=light,
        body=lambda: load_model(str(teacher)),
        alignment=ALL_IDS,
        student_width=len(light.head.weight),
        load_images=lambda one: [draw(int(one.id[1:]), size)],
        log=lambda line: None,
    )


def prepare(folder: Path, width: int, prompts: int) -> str:
    """Save both models, fill the cache and return a line about them."""
    teacher = build(2 * width, 1)
    student = build(width, 2, like=teacher)
    save_model(teacher, folder / TEACHER)
    save_model(student, folder / STUDENT)
    items = items_of(student, prompts)
    plan = plan_of(folder, folder / TEACHER, CacheConfig(), IMAGE_SIZE)
    started = time.perf_counter()
    store = fill_cache(plan, items, name=PAIRS)
    seconds = time.perf_counter() - started
    encoded = student.encode([items[0].example], [plan.load_images(items[0].example)])
    return (
        f"{parameters(student) / 1e6:.2f} M student, {parameters(teacher) / 1e6:.2f} M teacher; a prompt of "
        f"{encoded.input_ids.shape[1]} tokens and {2 * RESPONSE_TOKENS} response tokens a step; the cache of "
        f"{store.num_tokens} tokens took {seconds:.1f} s to fill"
    )


def items_of(student: LoadedModel, prompts: int) -> list[TrainItem]:
    """Return prompts with random responses of both authors."""
    generator = torch.Generator().manual_seed(0)
    special = {*student.tokenizer.all_special_ids, *student.image_token_ids}
    usable = torch.tensor([one for one in range(len(student.tokenizer)) if one not in special])
    items = []
    for index in range(prompts):
        example = prompt(index, QUESTION)
        shape = (2, RESPONSE_TOKENS)
        drawn = usable[torch.randint(len(usable), shape, generator=generator)].tolist()
        both = answer(example, "teacher", drawn[0]), answer(example, "student", drawn[1])
        items.append(TrainItem(example=example, responses=both))
    return items


def timed(variant: str, folder: Path, prompts: int, steps: int) -> dict[str, float]:
    """Return seconds of a step and memory of this process, which loads what its variant needs."""
    student = load_model(str(folder / STUDENT))
    items = items_of(student, prompts)
    plan = plan_of(folder, folder / TEACHER, CacheConfig(), IMAGE_SIZE)
    if variant == LIVE:
        one = trainer(folder / f"run{os.getpid()}", student, plan.body(), items, plan, None)
    else:
        store = fill_cache(replace(plan, body=_no_body), items, name=PAIRS)
        reader = CacheReader([store], tier=plan.tier)
        one = trainer(folder / f"run{os.getpid()}", student, plan.light, items, plan, reader)

    def step() -> dict[str, float]:
        one.optimizer_step()
        return {}

    return measure(step, times=steps)


def _no_body() -> LoadedModel:
    raise SystemExit("a row was computed again")


def parameters(loaded: LoadedModel) -> int:
    return sum(parameter.numel() for parameter in loaded.model.parameters())


def trainer(
    folder: Path,
    student: LoadedModel,
    teacher: LoadedModel,
    items: Sequence[TrainItem],
    plan: CachePlan,
    cache: CacheReader | None,
) -> Trainer:
    stage = Stage(
        student=student,
        teacher=teacher,
        alignment=ALL_IDS,
        objective=DistiLLM2().build(),
        items=items,
        load_images=plan.load_images,
        folder=folder,
        key="benchmark",
        label=folder.name,
        seed=0,
        cache=cache,
    )
    config = TrainConfig(steps=10_000, batch_size=1, micro_batch_size=1, trainable=Trainable(vision="frozen"))
    return Trainer(config, stage, lambda line: None)


if __name__ == "__main__":
    main()
