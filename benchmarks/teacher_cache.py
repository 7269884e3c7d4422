"""Training from the teacher cache against a live teacher: time of a step, bytes of a token, error of a tier.

    python benchmarks/teacher_cache.py --output runs/teacher_cache

Time: a LLaVA pair built from configs, random weights, the teacher with the student's depth and twice its
width in language model and tower: four times its cost. Every prompt has 576 image tokens, about 32 of text
and two responses of 48. Both ways train copies of one student through the package's own trainer, DistiLLM-2,
one prompt a step; epochs of the two alternate. The cache is filled before, so each epoch is a second one.

Size and error: the bundled easy-VQA teacher p on its own answers about drawn pictures, with half of its
layers as the student q. Error of a tier: |KL(p || q) - the same KL from what is cached|, mean over tokens;
and KL(p || what cached hidden states give). Rows go to OUTPUT/teacher_cache.jsonl, tables to standard output.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image as Picture
from PIL import ImageDraw

from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.adapters.catalog import load_model, save_model
from vlm_distill.adapters.llava import BuildConfig, build_llava
from vlm_distill.adapters.output_layer import light_model
from vlm_distill.adapters.shrink import ShrinkConfig, shrink_student
from vlm_distill.batches import pad_responses
from vlm_distill.data.teacher_cache import CacheConfig, CacheReader, CacheStore
from vlm_distill.forward import response_hidden
from vlm_distill.generation.engine import Sampling
from vlm_distill.generation.live import sample_responses
from vlm_distill.generation.transformers_engine import TransformersEngine
from vlm_distill.losses import DistiLLM2, Rows, forward_kl
from vlm_distill.losses.sparse import TopRows
from vlm_distill.records import Author, Example, Image, Message, Response, Text, response_id
from vlm_distill.training.config import Trainable, TrainConfig
from vlm_distill.training.items import TrainItem
from vlm_distill.training.stage import Stage
from vlm_distill.training.teacher_cache import CachePlan, cached_rows, fill_cache
from vlm_distill.training.trainer import Trainer

IMAGE_SIZE, PATCH_SIZE, RESPONSE_TOKENS = 336, 14, 48
QUESTION = "Describe the picture: how many shapes does it show, of which colour, and where are they?"
TEXTS = (
    QUESTION,
    "What shape is in the image?",
    "Is there a red circle? yes no blue green triangle rectangle",
)
TIERS = {
    "hidden states, as computed": CacheConfig(),
    "hidden states, bfloat16": CacheConfig(dtype="bfloat16"),
    "top 128 and the rest": CacheConfig(tier="top_k", k=128),
    "top 16 and the rest": CacheConfig(tier="top_k", k=16),
    "sampled token": CacheConfig(tier="sampled"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/teacher_cache"))
    parser.add_argument("--repeats", type=int, default=7, help="epochs that are timed, of each way")
    parser.add_argument("--prompts", type=int, default=2, help="prompts of an epoch, one a step")
    parser.add_argument("--width", type=int, default=192, help="of the student's language model")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        times = step_times(Path(folder), options.repeats, options.prompts, options.width)
        sizes = tiers(Path(folder))
    options.output.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in [*times, *sizes])
    (options.output / "teacher_cache.jsonl").write_text(lines, encoding="utf-8")
    print(time_table(times))
    print()
    print(tier_table(sizes))


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
        vocabulary=slice(None),
        load_images=lambda one: [draw(int(one.id[1:]), size)],
        log=lambda line: None,
    )


def step_times(folder: Path, repeats: int, prompts: int, width: int) -> list[dict[str, Any]]:
    """Return one row per timed epoch and way: seconds of a step."""
    teacher, generator = build(2 * width, 1), torch.Generator().manual_seed(0)
    student = build(width, 2, like=teacher)
    save_model(teacher, folder / "teacher")
    special = {*student.tokenizer.all_special_ids, *student.placeholder_ids}
    usable = torch.tensor([one for one in range(len(student.tokenizer)) if one not in special])
    items = []
    for index in range(prompts):
        example = prompt(index, QUESTION)
        shape = (2, RESPONSE_TOKENS)
        drawn = usable[torch.randint(len(usable), shape, generator=generator)].tolist()
        both = answer(example, "teacher", drawn[0]), answer(example, "student", drawn[1])
        items.append(TrainItem(example=example, responses=both))
    plan = plan_of(folder / "cache", folder / "teacher", CacheConfig(), IMAGE_SIZE)
    started = time.perf_counter()
    store = fill_cache(plan, items, name="pairs")
    filled = time.perf_counter() - started
    trainers = {
        "live teacher": trainer(folder / "live", student, teacher, items, plan, None),
        "from the cache": trainer(folder / "cached", student, plan.light, items, plan, CacheReader([store])),
    }
    for one in trainers.values():
        epoch(one, prompts)
    rows = []
    for repeat in range(repeats):
        # In turn, and the first of a turn is the other one each time.
        ways = list(trainers.items())[:: 1 if repeat % 2 else -1]
        for way, one in ways:
            rows.append({"what": "step", "way": way, "repeat": repeat, "seconds": epoch(one, prompts)})
    encoded = student.encode([items[0].example], [plan.load_images(items[0].example)])
    shape = {"prompt_tokens": encoded.input_ids.shape[1], "response_tokens": 2 * RESPONSE_TOKENS}
    sizes = {"student": parameters(student), "teacher": parameters(teacher)}
    return [
        {"what": "pair", "threads": torch.get_num_threads(), "fill_seconds": filled, **shape, **sizes},
        *rows,
    ]


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
        student=replace(student, model=copy.deepcopy(student.model)),
        teacher=teacher,
        vocabulary=slice(None),
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


def epoch(one: Trainer, steps: int) -> float:
    """Return the seconds of a step, mean over an epoch."""
    started = time.perf_counter()
    for _ in range(steps):
        one.optimizer_step()
    return (time.perf_counter() - started) / steps


@torch.no_grad()
def tiers(folder: Path) -> list[dict[str, Any]]:
    """Return one row per tier: bytes of a response token and the error of the KL that it gives."""
    name, size = "bundled:easy_vqa_teacher", 64
    teacher = load_model(name)
    layers = teacher.model.config.get_text_config().num_hidden_layers
    student = shrink_student(ShrinkConfig(layers=max(1, layers // 2)), teacher=teacher)
    questions = ("What shape is in the image?", "What color is the shape?", "Is there a circle?")
    examples = [prompt(index, questions[index % 3]) for index in range(96)]
    exact = plan_of(folder / "tiers", name, CacheConfig(), size)
    engine = TransformersEngine(loaded=teacher, load_images=exact.load_images, batch_size=96)
    sampled = sample_responses(engine, examples, Sampling(max_new_tokens=48), batch_size=96)
    items = [TrainItem(example=e, responses=(r,)) for e, r in zip(examples, sampled, strict=True)]
    # In float64, so that the errors are not those of the sums.
    logits = [live_logits(model, items, exact).double() for model in (teacher, student)]
    rows = []
    for number, (label, config) in enumerate(TIERS.items()):
        plan = replace(exact, config=config)
        store = fill_cache(plan, items, name=f"tier{number}")
        error, direct = errors(plan, store, items, *logits)
        bytes_per_token = store.num_bytes / store.num_tokens
        row = {"what": "tier", "tier": label, "bytes_per_token": bytes_per_token, "tokens": store.num_tokens}
        rows.append({**row, "kl_error": error, "kl_direct": direct, "kl": kl_of(*logits)})
    width, vocabulary = (teacher.adapter.head(teacher.model).weight.shape[one] for one in (1, 0))
    return [{"what": "tier teacher", "width": width, "vocabulary": vocabulary}, *rows]


def live_logits(model: LoadedModel, items: Sequence[TrainItem], plan: CachePlan) -> torch.Tensor:
    examples = [item.example for item in items]
    prompts = model.encode(examples, [plan.load_images(one) for one in examples])
    hidden = response_hidden(model, prompts, pad_responses([item.responses for item in items]))
    rows = Rows(hidden=hidden, head=model.adapter.head(model.model))
    return rows.logits(rows.project(slice(None)))


def kl_of(p: torch.Tensor, q: torch.Tensor) -> float:
    return float(forward_kl(q, p).mean())


def errors(
    plan: CachePlan, store: CacheStore, items: Sequence[TrainItem], p: torch.Tensor, q: torch.Tensor
) -> tuple[float | None, float | None]:
    cached = CacheReader([store]).read([one.id for item in items for one in item.responses])
    rows, whole = cached_rows(cached, plan.light, plan.vocabulary), forward_kl(q, p)
    if isinstance(rows, Rows):
        found = rows.logits(rows.project(slice(None))).double()
        return float((forward_kl(q, found) - whole).abs().mean()), kl_of(p, found)
    if isinstance(rows, TopRows):
        ours, columns = q.log_softmax(dim=1), rows.columns.long()
        rest = ours.scatter(1, columns, -torch.inf).logsumexp(dim=1, keepdim=True)
        buckets = torch.cat([ours.gather(1, columns), rest], dim=1)
        return float((forward_kl(buckets, rows.log_probs.double()) - whole).abs().mean()), None
    return None, None


def time_table(rows: Sequence[dict[str, Any]]) -> str:
    pair, steps = rows[0], rows[1:]
    ways = {
        way: [one["seconds"] for one in steps if one["way"] == way]
        for way in ("live teacher", "from the cache")
    }
    live = ways["live teacher"]
    lines = [
        f"{pair['student'] / 1e6:.2f} M student, {pair['teacher'] / 1e6:.2f} M teacher, a prompt of "
        f"{pair['prompt_tokens']} tokens with {pair['response_tokens']} response tokens a step, "
        f"{pair['threads']} threads; the cache took {pair['fill_seconds']:.1f} s to fill",
        "",
        "| way | median s a step | range | against live |",
        "| --- | --- | --- | --- |",
    ]
    for way, values in ways.items():
        ratio = statistics.median(values) / statistics.median(live)
        spread = f"{min(values):.3f} to {max(values):.3f}"
        lines.append(f"| {way} | {statistics.median(values):.3f} | {spread} | {ratio:.2f} |")
    return "\n".join(lines)


def tier_table(rows: Sequence[dict[str, Any]]) -> str:
    teacher, found = rows[0], rows[1:]
    header = ["tier", "bytes a token", "error of KL(p, q)", "KL(p, cached)"]
    lines = [
        f"teacher of width {teacher['width']} with {teacher['vocabulary']} tokens, {found[0]['tokens']} "
        f"response tokens, KL(p, q) {found[0]['kl']:.3f} nats; float32 logits would take "
        f"{4 * teacher['vocabulary']} bytes",
        "",
        "| " + " | ".join(header) + " |",
        "| " + " | ".join(["---"] * len(header)) + " |",
    ]
    for row in found:
        cells = ["-" if row[name] is None else f"{row[name]:.1e}" for name in ("kl_error", "kl_direct")]
        lines.append(f"| {row['tier']} | {row['bytes_per_token']:,.0f} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
