"""Prompts with two pictures, one and none, and five responses of unequal lengths to them."""

import torch

from tests.tiny import example, picture
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.batches import PromptBatch, ResponseBatch

IMAGES = [[picture("red")], [], [picture("blue"), picture("green")]]
PROMPTS = [
    example("a", "What color is the shape?", num_images=1),
    example("b", "hi"),
    example("c", "Is there a red circle?", num_images=2, system="Be brief."),
]
RESPONSES = [(0, [10, 20, 1]), (2, [30, 1]), (0, [40, 50, 60, 70, 1]), (1, [80]), (2, [90, 100, 110])]


def responses_of(pairs: list[tuple[int, list[int]]], *, width: int | None = None) -> ResponseBatch:
    width = width or max(len(ids) for _, ids in pairs)
    input_ids = torch.full((len(pairs), width), 7)
    mask = torch.zeros((len(pairs), width), dtype=torch.bool)
    for row, (_, ids) in enumerate(pairs):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = True
    return ResponseBatch(
        prompt_index=torch.tensor([prompt for prompt, _ in pairs]),
        input_ids=input_ids,
        mask=mask,
        author=torch.zeros(len(pairs), dtype=torch.long),
    )


def prompts_of(loaded: LoadedModel) -> PromptBatch:
    if not loaded.image_token_ids:
        return loaded.encode(
            [example("a", "hi"), example("b", "What color?"), example("c", "yes")], [[], [], []]
        )
    return loaded.encode(PROMPTS, IMAGES)
