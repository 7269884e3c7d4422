"""One DistiLLM-2 step on a pair of responses, side by side: our step against concatenated forwards.

    python benchmarks/pair_step.py --repeats 5

A LLaVA with 576 image tokens and 32 prompt tokens learns from a larger one on 2 x 48 response tokens.
Variants: `pair` (the prefix once per model, the loss on response rows), `pair_cached` (features of the towers
are there already) and `concatenated` ([x, y_t] and [x, y_s] as two sequences, the image encoded in each, both
divergences on the logits of all positions). One process first compares their gradients and counts FLOPs
(eager attention: fused kernels are not counted) and images that the towers encode. Then every variant is
timed in processes of its own, in turns (side_by_side.py).
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from side_by_side import add_json_lines, add_options, compare, machine, measure, table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.llava import LLAVA
from vlm_distill.alignment.alignment import ALL_IDS
from vlm_distill.batches import PromptBatch, ResponseBatch
from vlm_distill.losses import DistiLLM2
from vlm_distill.models.feature_store import FeatureStore, VisionCacheConfig
from vlm_distill.models.vision_cache import with_vision_cache
from vlm_distill.records import AUTHORS
from vlm_distill.training.items import TrainBatch
from vlm_distill.training.step import Stage, StepModule

IMAGE_TOKENS, TEXT_TOKENS, RESPONSE_TOKENS = 576, 32, 48
PREFIX = IMAGE_TOKENS + TEXT_TOKENS
VOCABULARY, IMAGE_ID = 32_000, 31_999
ALPHA = 0.1
VARIANTS = ("pair", "pair_cached", "concatenated")
Step = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """A language model beside a tower of 577 tokens."""

    width: int
    layers: int
    tower_width: int
    tower_layers: int


STUDENT = Size(width=512, layers=4, tower_width=256, tower_layers=4)
TEACHER = Size(width=1024, layers=4, tower_width=256, tower_layers=4)


def build(size: Size, *, attention: str, seed: int) -> LoadedModel:
    """Return a random LLaVA; prompts are made here, so it has no processor."""
    tower = CLIPVisionConfig(
        hidden_size=size.tower_width,
        intermediate_size=4 * size.tower_width,
        num_hidden_layers=size.tower_layers,
        num_attention_heads=4,
        image_size=336,
        patch_size=14,
    )
    language = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.width // 64,
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        vision_config=tower,
        text_config=language,
        image_token_index=IMAGE_ID,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    model.set_attn_implementation(attention)
    return LoadedModel(
        adapter=LLAVA,
        model=model,
        processor=None,
        tokenizer=None,
        path="benchmark",
        fingerprint=str(seed),
        stop_ids=(2,),
        image_token_ids=(IMAGE_ID,),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Both models, a prompt with its image, and a response of each."""

    student: LoadedModel
    teacher: LoadedModel
    prompts: PromptBatch
    responses: ResponseBatch


def make_pair(*, attention: str) -> Pair:
    student = build(STUDENT, attention=attention, seed=0)
    teacher = build(TEACHER, attention=attention, seed=1)
    student.model.train()
    student.model.model.vision_tower.requires_grad_(False)
    teacher.model.eval()
    torch.manual_seed(2)
    text = torch.randint(3, 30_000, (1, TEXT_TOKENS))
    input_ids = torch.cat([text[:, :8], torch.full((1, IMAGE_TOKENS), IMAGE_ID), text[:, 8:]], dim=1)
    prompts = PromptBatch(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        extras={"pixel_values": torch.randn(1, 3, 336, 336)},
        extra_counts={"pixel_values": (1,)},
    )
    responses = ResponseBatch(
        prompt_index=torch.tensor([0, 0]),
        input_ids=torch.randint(3, 30_000, (2, RESPONSE_TOKENS)),
        mask=torch.ones(2, RESPONSE_TOKENS, dtype=torch.bool),
        author=torch.tensor([AUTHORS.index("teacher"), AUTHORS.index("student")]),
    )
    return Pair(student=student, teacher=teacher, prompts=prompts, responses=responses)


def pair_step(pair: Pair, *, is_cached: bool) -> Step:
    """Return our step, forward and backward, as the trainer takes it."""
    student, teacher = pair.student, pair.teacher
    if is_cached:
        cache = FeatureStore(VisionCacheConfig(), folder=None, log=print)
        student, teacher = with_vision_cache(student, cache), with_vision_cache(teacher, cache)
    objective = DistiLLM2(alpha=ALPHA).build()
    stage = Stage(
        student=student,
        teacher=teacher,
        alignment=ALL_IDS,
        objective=objective,
        items=(),
        load_images=lambda _: [],
        folder=Path(),
        key="",
        label="",
        seed=0,
    )
    module = StepModule(stage, 256 * 2**20)

    def encode(loaded: LoadedModel) -> PromptBatch:
        exchange = loaded.vision_cache
        return pair.prompts if exchange is None else exchange(loaded, pair.prompts)

    def step() -> Tensor:
        batch = TrainBatch(
            student_prompts=encode(student), teacher_prompts=encode(teacher), responses=pair.responses
        )
        loss: Tensor = module(batch, objective.counts(pair.responses)).loss
        loss.backward()
        return loss.detach()

    return step


def concatenated_step(pair: Pair) -> Step:
    """Return the plain step: two full sequences per model, and the dense loss on all of their logits."""
    input_ids = torch.cat([pair.prompts.input_ids.expand(2, -1), pair.responses.input_ids], dim=1)
    pixels = pair.prompts.extras["pixel_values"].expand(2, -1, -1, -1)
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "pixel_values": pixels}
    # Position t predicts token t + 1.
    mask = torch.zeros(2, PREFIX + RESPONSE_TOKENS)
    mask[:, PREFIX - 1 : -1] = 1.0

    def step() -> Tensor:
        with torch.no_grad():
            teacher_logits = pair.teacher.model(**inputs, use_cache=False).logits
        student_logits = pair.student.model(**inputs, use_cache=False).logits
        forward, reverse = dense_divergences(student_logits, teacher_logits)
        means = [(values * mask).sum(1) / mask.sum(1) for values in (forward, reverse)]
        loss: Tensor = 0.5 * means[0][0] + 0.5 * means[1][1]
        loss.backward()
        return loss.detach()

    return step


def dense_divergences(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return skew KL and skew reverse KL of every position; DistiLLM-2, arXiv:2503.07067, Eq. 3 and 4."""
    student_probs, teacher_probs = student_logits.softmax(-1), teacher_logits.softmax(-1)
    student_log_probs, teacher_log_probs = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    forward_mixture = ALPHA * teacher_probs + (1 - ALPHA) * student_probs
    reverse_mixture = ALPHA * student_probs + (1 - ALPHA) * teacher_probs
    forward = (teacher_probs * (teacher_log_probs - forward_mixture.log())).sum(-1)
    reverse = (student_probs * (student_log_probs - reverse_mixture.log())).sum(-1)
    return forward, reverse


def make_step(pair: Pair, variant: str) -> Step:
    if variant == "concatenated":
        return concatenated_step(pair)
    return pair_step(pair, is_cached=variant == "pair_cached")


def product_flops(_: Sequence[int], left: Sequence[int], right: Sequence[int], *__: Any, **___: Any) -> int:
    """Return the FLOPs of `addmm_` from its shapes: torch's counter knows only the form with a result."""
    return 2 * left[0] * left[1] * right[1]


def needed_flops(size: Size, model: nn.Module, *, learns: bool, with_tower: bool) -> int:
    """Return what a model needs: linear layers on unique tokens, and the query-key pairs of causal attention.

    A layer that learns takes as much again for its weights and for its input. The last token of a response
    predicts nothing.
    """
    loaded: Any = model
    times = 3 if learns else 1
    following = RESPONSE_TOKENS - 1
    linear = _linear_weights(loaded.model.language_model)
    total = times * 2 * linear * (PREFIX + 2 * following)
    pairs = PREFIX * (PREFIX + 1) // 2 + 2 * sum(PREFIX + 1 + j for j in range(following))
    total += times * 4 * size.width * size.layers * pairs
    projector = loaded.model.multi_modal_projector
    first, second = projector.linear_1.weight.numel(), projector.linear_2.weight.numel()
    # Nothing learns below the first layer of the projector.
    total += 2 * IMAGE_TOKENS * ((2 if learns else 1) * first + times * second)
    total += times * 2 * VOCABULARY * size.width * 2 * RESPONSE_TOKENS
    if with_tower:
        seen = IMAGE_TOKENS + 1
        tower = loaded.model.vision_tower
        patches = tower.get_submodule(_patch_embedding(tower)).weight.numel()
        total += 2 * IMAGE_TOKENS * patches + 2 * seen * _linear_weights(tower)
        total += 4 * size.tower_width * size.tower_layers * seen**2
    return int(total)


def _linear_weights(module: nn.Module) -> int:
    return sum(one.weight.numel() for one in module.modules() if isinstance(one, nn.Linear))


def _patch_embedding(tower: nn.Module) -> str:
    return next(name for name, one in tower.named_modules() if isinstance(one, nn.Conv2d))


def count_images(models: Sequence[LoadedModel]) -> list[int]:
    """Return a list to which the towers append the number of images of every forward."""
    seen: list[int] = []
    for loaded in models:
        tower: Any = loaded.model
        tower.model.vision_tower.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    return seen


def facts() -> list[dict[str, Any]]:
    """Return a row per variant: gradients against the concatenated step, FLOPs, images through towers."""
    pair = make_pair(attention="eager")
    seen = count_images([pair.student, pair.teacher])
    rows, gradients = [], {}
    for variant in reversed(VARIANTS):
        step = make_step(pair, variant)
        if variant == "pair_cached":
            step()  # fills the cache
        seen.clear()
        pair.student.model.zero_grad(set_to_none=True)
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: product_flops}) as counter:
            loss = step()
        gradients[variant] = {
            name: one.grad.clone()
            for name, one in pair.student.model.named_parameters()
            if one.grad is not None
        }
        with_tower = variant != "pair_cached"
        needed = needed_flops(STUDENT, pair.student.model, learns=True, with_tower=with_tower)
        needed += needed_flops(TEACHER, pair.teacher.model, learns=False, with_tower=with_tower)
        rows.append(
            {
                "variant": variant,
                "loss": float(loss),
                "gradient_difference": _difference(gradients[variant], gradients["concatenated"]),
                "flops": counter.get_total_flops(),
                "flops_over_needed": counter.get_total_flops() / needed,
                "images_encoded": sum(seen),
            }
        )
    return rows[::-1]


def _difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the norm of the difference of all gradients over the norm of the expected ones."""
    assert found.keys() == expected.keys()
    distance = sum(float((found[name] - value).square().sum()) for name, value in expected.items())
    return float((distance / sum(float(value.square().sum()) for value in expected.values())) ** 0.5)


def timed(variant: str, *, num_steps: int) -> dict[str, float]:
    """Return the median step of this process and its peak memory, after a first step."""
    pair = make_pair(attention="sdpa")
    step = make_step(pair, variant)

    def one() -> dict[str, float]:
        pair.student.model.zero_grad(set_to_none=True)
        step()
        return {}

    return measure(one, times=num_steps)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--steps", type=int, default=2, help="timed steps in a process, after one that is not"
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    if options.variant:
        print(json.dumps(timed(options.variant, num_steps=options.steps)))
        return
    print(machine())
    counted = facts()
    add_json_lines(options.json, counted)
    rows = compare(VARIANTS, options, "--steps", str(options.steps))
    print(table(rows, {"seconds": ".2f", "peak_mib": ".0f", "resident_mib": ".0f"}))
    print("| variant | FLOPs over needed | images encoded | gradient difference |\n| --- | --- | --- | --- |")
    for fact in counted:
        cells = fact["variant"], f"{fact['flops_over_needed']:.3f}", fact["images_encoded"]
        print(f"| {' | '.join(map(str, cells))} | {fact['gradient_difference']:.1e} |")


if __name__ == "__main__":
    main()
