"""How the prompts of an optimiser step are cut into forwards: by number, or by padded positions.

A forward pads prompts to the longest prompt and responses to the longest response. The step's gradient is
that of its prompts in any cut, so that a cut is free to put similar lengths together.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_distill.batches import PromptBatch, ResponseBatch, TrainItem
from vlm_distill.generation.prompts import prompt_lengths
from vlm_distill.training.config import TrainConfig
from vlm_distill.training.step import Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemLength:
    """Tokens of a prompt, image tokens included, number of its responses, tokens of the longest of them."""

    prompt: int
    num_responses: int
    response: int


def item_length(item: TrainItem, *, prompt: int) -> ItemLength:
    longest = max((len(response.token_ids) for response in item.responses), default=0)
    return ItemLength(prompt=prompt, num_responses=len(item.responses), response=longest)


def sort_lengths(items: Sequence[TrainItem], prompts: Sequence[int]) -> list[tuple[int, int]]:
    """Return the (prompt, longest response) tokens of each item, by which steps are grouped."""
    lengths = [item_length(item, prompt=prompt) for item, prompt in zip(items, prompts, strict=True)]
    return [(length.prompt, length.response) for length in lengths]


def count_prompt_tokens(
    config: TrainConfig,
    stage: Stage,
    *,
    processes: tuple[int, int],
    gather: Callable[[list[Any]], list[Any]],
) -> list[int]:
    """Return the length of every item's prompt for the student, empty where the config needs none.

    Encoding every prompt takes a while with images, so each of the `processes` (its number, of how many)
    counts its share.
    """
    if config.micro_batch_tokens is None and not config.group_by_length:
        return []
    own, num_processes = processes
    examples = [item.example for item in stage.items]
    counted = gather([prompt_lengths(stage.student, stage.load_images, examples[own::num_processes])])
    return [counted[i % num_processes][i // num_processes] for i in range(len(examples))]


def count_positions(lengths: Sequence[ItemLength], *, shares: bool) -> int:
    """Return how many positions a forward of these items has, padding included, as forward.py runs it.

    With `shares`, a prompt runs once for all its responses. The last token of a response is not forwarded.
    Where activations are recomputed, a prompt with fewer responses than another is padded to as many, which
    is not counted.
    """
    return _Block.of(lengths).positions(shares=shares)


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatcher:
    """Cuts items into micro-batches of `size` items or of at most `tokens` positions; the other is None.

    `prompts` are the lengths of the prompts by example id, which only `tokens` reads.
    """

    size: int | None
    tokens: int | None
    prompts: Mapping[str, int]
    shares: bool

    def cut(self, items: Sequence[TrainItem], *, at_least: int = 1) -> list[list[TrainItem]]:
        """Return the micro-batches, each item in one of them, an item above the budget alone.

        By `size` they keep the order of the items. By `tokens` there are as few as possible, then with as
        few positions as possible, and `at_least` so many as long as the items last: that of the most
        positions is cut until there are.
        """
        if self.tokens is None:
            assert self.size is not None
            return [list(items[start : start + self.size]) for start in range(0, len(items), self.size)]
        lengths = [item_length(item, prompt=self.prompts[item.example.id]) for item in items]
        numbers = cut_by_positions(lengths, budget=self.tokens, shares=self.shares)
        while len(numbers) < min(at_least, len(items)):
            sizes = [
                count_positions([lengths[i] for i in group], shares=self.shares) if len(group) > 1 else -1
                for group in numbers
            ]
            widest = numbers.pop(sizes.index(max(sizes)))
            numbers += _halves(widest, lengths, budget=self.tokens, shares=self.shares)
        return [[items[i] for i in group] for group in numbers]


def cutter(config: TrainConfig, stage: Stage, *, prompts: Sequence[int], shares: bool) -> MicroBatcher:
    """Return the cut that the config asks for; `prompts` are the lengths of the stage's prompts, or empty."""
    by_id = {item.example.id: length for item, length in zip(stage.items, prompts, strict=False)}
    return MicroBatcher(
        size=config.micro_batch_size, tokens=config.micro_batch_tokens, prompts=by_id, shares=shares
    )


def cut_by_positions(lengths: Sequence[ItemLength], *, budget: int, shares: bool) -> list[list[int]]:
    """Return item numbers in groups of at most `budget` positions; an item above it is a group of its own.

    Groups are halved, by prompt or by response length, wherever this leaves the fewest forwards and then the
    fewest positions: what costs is padding in two directions, which one sorted list cannot avoid.
    """
    groups, waiting = list[list[int]](), [list(range(len(lengths)))]
    while waiting:
        group = waiting.pop()
        fits = count_positions([lengths[i] for i in group], shares=shares) <= budget
        if fits or len(group) == 1:
            groups.append(group)
        else:
            waiting += reversed(_halves(group, lengths, budget=budget, shares=shares))
    return [group for group in groups if group]


def _halves(
    group: Sequence[int], lengths: Sequence[ItemLength], *, budget: int, shares: bool
) -> tuple[list[int], list[int]]:
    """Return the best two parts of a group of at least two items, longer ones first: memory shows at once."""
    best = None
    for by_prompt in (True, False):
        # Stable, so that the order of equal lengths is that of the items.
        order = sorted(group, key=lambda i: -(lengths[i].prompt if by_prompt else lengths[i].response))
        heads, tails = _blocks(order, lengths), _blocks(order[::-1], lengths)[::-1]
        for place in range(1, len(order)):
            parts = heads[place - 1].positions(shares=shares), tails[place].positions(shares=shares)
            forwards = sum(math.ceil(part / budget) for part in parts)
            if best is None or (forwards, sum(parts)) < best[0]:
                best = (forwards, sum(parts)), order[:place], order[place:]
    assert best is not None
    return best[1], best[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """The tensors of some items: how many rows, and how wide the longest makes them."""

    prompts: int = 0
    responses: int = 0
    prompt: int = 0
    response: int = 0

    @classmethod
    def of(cls, lengths: Sequence[ItemLength]) -> "_Block":
        block = cls()
        for one in lengths:
            block = block.add(one)
        return block

    def add(self, one: ItemLength) -> "_Block":
        return _Block(
            prompts=self.prompts + 1,
            responses=self.responses + one.num_responses,
            prompt=max(self.prompt, one.prompt),
            response=max(self.response, one.response),
        )

    def positions(self, *, shares: bool) -> int:
        prefixes = self.prompts if shares and self.responses > self.prompts else self.responses
        return prefixes * self.prompt + self.responses * max(0, self.response - 1)


def _blocks(order: Sequence[int], lengths: Sequence[ItemLength]) -> list[_Block]:
    """Return the block of the first item, of the first two, and so on."""
    blocks, block = [], _Block()
    for i in order:
        block = block.add(lengths[i])
        blocks.append(block)
    return blocks


def padding_counts(prompts: PromptBatch, responses: ResponseBatch, *, shares: bool) -> dict[str, Tensor]:
    """Return how many positions of a forward hold no token, and how many it has, on the batch's device."""
    is_shared = shares and len(responses.input_ids) > len(prompts.input_ids)
    prefixes = prompts.attention_mask if is_shared else prompts.attention_mask[responses.prompt_index]
    rest = responses.mask[:, :-1]
    total = torch.full_like(prefixes.sum(), prefixes.numel() + rest.numel())
    return {"padding_sum": total - prefixes.sum() - rest.sum(), "padding_count": total}
