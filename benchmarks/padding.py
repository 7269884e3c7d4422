"""The share of padding in training: plain batches, length grouping, micro-batches by tokens, and both.

    python benchmarks/padding.py
    python benchmarks/padding.py --gsm8k train.jsonl --model NAME

Counted, not timed, with the code of the trainer on the lengths of real data: one epoch of prompts with their
reference as the response. easy-VQA comes with its package and is read with the bundled teacher's tokenizer;
GSM8K is a table of questions and answers, read with that of --model. A forward pads prompts and responses
separately, each to its longest. Numbers are means over --seeds, with the lowest and the highest of the share.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from side_by_side import add_json_lines

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.data.own_table import recipe_for_table
from vlm_distill.data.recipe import Recipe, load_recipe, prepare
from vlm_distill.generation.prompts import prompt_lengths
from vlm_distill.generation.references import encode_references
from vlm_distill.models.load import load_model
from vlm_distill.training.items import TrainOrder
from vlm_distill.training.micro_batches import ItemLength, count_positions, cut_by_positions

TEACHER = "bundled:easy_vqa_teacher"
VARIANTS = {
    "plain": (False, False),
    "length grouping": (True, False),
    "token budget": (False, True),
    "grouping and budget": (True, True),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gsm8k", type=Path, help="JSON lines with `question` and `answer`")
    parser.add_argument("--model", default=TEACHER, help="whose tokenizer counts the tokens of --gsm8k")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--micro-batch-size", type=int, default=8)
    parser.add_argument("--micro-batch-tokens", type=int, default=4096)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="also write every row to this file of JSON lines")
    options = parser.parse_args(arguments)
    data = {"easy-VQA": (load_recipe("easy_vqa"), TEACHER)}
    if options.gsm8k:
        data["GSM8K"] = (recipe_for_table(options.gsm8k), options.model)
    rows = []
    for name, (recipe, model) in data.items():
        lengths = read_lengths(recipe, load_model(model))
        rows += [{"data": name, "model": model, **row} for row in compare(lengths, options)]
    add_json_lines(options.json, rows)
    print(table(rows))


def read_lengths(recipe: Recipe, loaded: LoadedModel) -> list[ItemLength]:
    """Return the lengths of the training prompts and of their references."""
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(recipe, Path(folder), log=lambda _: None)
        prompts = prompt_lengths(
            loaded, lambda one: [data.images.load(name) for name in one.images], data.train
        )
    references = encode_references(
        data.train, loaded.tokenizer, stop_ids=loaded.stop_ids, fingerprint=loaded.fingerprint
    )
    return [
        ItemLength(prompt=prompt, num_responses=1, response=len(reference.token_ids))
        for prompt, reference in zip(prompts, references, strict=True)
    ]


def compare(lengths: Sequence[ItemLength], options: argparse.Namespace) -> list[dict[str, Any]]:
    valid = sum(one.prompt + one.response - 1 for one in lengths) / len(lengths)
    rows = []
    for name, (groups, has_budget) in VARIANTS.items():
        found = [
            one_epoch(lengths, options, seed=seed, groups=groups, has_budget=has_budget)
            for seed in options.seeds
        ]
        row: dict[str, Any] = {
            "variant": name,
            "prompts": len(lengths),
            "tokens_per_prompt": valid,
            "batch_size": options.batch_size,
            "limit": options.micro_batch_tokens if has_budget else options.micro_batch_size,
        }
        row |= {key: statistics.mean(one[key] for one in found) for key in found[0]}
        shares = [one["padding"] for one in found]
        rows.append(row | {"lowest": min(shares), "highest": max(shares)})
    return rows


def one_epoch(
    lengths: Sequence[ItemLength], options: argparse.Namespace, *, seed: int, groups: bool, has_budget: bool
) -> dict[str, float]:
    """Return padding, number and size of the forwards of the whole steps of the first epoch."""
    pairs = [(one.prompt, one.response) for one in lengths]
    plan = TrainOrder(
        num_items=len(lengths), batch_size=options.batch_size, seed=seed, lengths=pairs if groups else None
    )
    valid, sizes = 0, list[int]()
    for number in range(len(lengths) // options.batch_size):
        step = [lengths[index] for index in plan.step(number)]
        size = options.micro_batch_size
        cut = [list(range(start, start + size))[: len(step) - start] for start in range(0, len(step), size)]
        if has_budget:
            cut = cut_by_positions(step, budget=options.micro_batch_tokens, shares=True)
        valid += sum(one.prompt + one.response - 1 for one in step)
        sizes += [count_positions([step[i] for i in group], shares=True) for group in cut]
    return {"padding": 1 - valid / sum(sizes), "forwards": len(sizes), "largest": max(sizes)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    header = ["data", "tokens a prompt", "batches", "padding", "forwards", "positions of the largest"]
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join(["---"] * len(header)) + " |"]
    for row in rows:
        share = f"{row['padding']:.1%} ({row['lowest']:.1%} to {row['highest']:.1%})"
        cells = [row["data"], f"{row['tokens_per_prompt']:.0f}", row["variant"], share]
        cells += [f"{row['forwards']:,.0f}", f"{row['largest']:,.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
