"""What a model is asked: prompts with one picture, none and two, and responses of unequal lengths to them.

Everything is drawn here, so that any model folder can be checked without data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from PIL import Image as Picture

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.foreign import blame
from vlm_distill.batches import PromptBatch, ResponseBatch
from vlm_distill.conformance.inputs import processed
from vlm_distill.records import Example, Image, Message, Text

T = TypeVar("T")
Pairs = Sequence[tuple[int, Sequence[int]]]
"""Responses as the number of their prompt and their token ids."""

LARGE = 2**24
"""Frozen weights of more numbers are shared by copies; their gradients would fill the memory."""
LONG, FEW = 512, 4
"""Prompts of more tokens get so many responses, or the checks of a small model would take minutes."""
QUESTIONS = ("What color is the shape?", "hi", "Which one is red, the first or the second?")
# Colour, width and height; of unequal sizes, so that a family that sizes its inputs by them has to.
PICTURES = (("red", 40, 16), ("yellow", 24, 24), ("blue", 16, 16), ("green", 8, 32))
# How many pictures each prompt has, in the order in which it is tried what the processor reads.
LAYOUTS = ((1, 0, 2), (1, 1, 2), (1, 0, 1), (1, 1, 1))
# Prompt and length of each response: out of order, several to a prompt, one of a single token.
LENGTHS = ((0, 3), (2, 2), (0, 5), (1, 1), (2, 3))


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A model with what it is asked; `pictures` are by example id, and nobody else knows these images."""

    loaded: LoadedModel
    examples: tuple[Example, ...]
    pictures: Mapping[str, tuple[Picture.Image, ...]]
    pairs: tuple[tuple[int, tuple[int, ...]], ...]
    _known: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def remembered(self, key: object, make: Callable[[], T]) -> T:
        """Return what `make` gives, made once by a probe: several checks compare with the same."""
        if key not in self._known:
            self._known[key] = make()
        value: T = self._known[key]
        return value

    def load_pictures(self, example: Example) -> list[Picture.Image]:
        return list(self.pictures[example.id])

    @property
    def prompts(self) -> PromptBatch:
        """The prompts as the model's adapter encodes them, on its device."""
        return self.remembered("prompts", self._encode)

    def _encode(self) -> PromptBatch:
        pictures = [self.load_pictures(example) for example in self.examples]
        return self.loaded.encode(self.examples, pictures).to(self.loaded.device)

    @property
    def few(self) -> "Probe":
        """The first two responses, for what concerns each one alone."""
        return replace(self, pairs=self.pairs[:2])

    @property
    def num_pictures(self) -> tuple[int, ...]:
        return tuple(len(example.images) for example in self.examples)


def probe_of(loaded: LoadedModel, *, lengths: Sequence[tuple[int, int]] = LENGTHS) -> Probe:
    """Return the probe of a model; one without a vision component is asked the questions alone.

    A family whose processor reads no prompt without a picture, or none with two, is asked others (LAYOUTS).
    `lengths` are the prompt and the number of tokens of each response; to LONG prompts there are fewer.
    """
    layouts = LAYOUTS if "vision" in loaded.adapter.parts else ((0, 0, 0),)
    asked = [_asked(layout) for layout in layouts]
    read = ((*one, _most_tokens(loaded, *one)) for one in asked)
    examples, pictures, most = next((one for one in read if one[-1]), (*asked[0], 0))
    some = lengths[:FEW] if most > LONG else lengths
    return Probe(loaded=loaded, examples=examples, pictures=pictures, pairs=tuple(_responses(loaded, some)))


def _asked(layout: Sequence[int]) -> tuple[tuple[Example, ...], dict[str, tuple[Picture.Image, ...]]]:
    examples = [
        _example(str(number), question, num_images=count)
        for number, (question, count) in enumerate(zip(QUESTIONS, layout, strict=True))
    ]
    # The first prompt has the first picture, the second the second, the third the last ones.
    drawn = [
        [_draw(*PICTURES[min(number, 2) + one]) for one in range(count)]
        for number, count in enumerate(layout)
    ]
    return tuple(examples), {one.id: tuple(some) for one, some in zip(examples, drawn, strict=True)}


def _most_tokens(
    loaded: LoadedModel, examples: Sequence[Example], pictures: Mapping[str, Sequence[Picture.Image]]
) -> int:
    """Return the length of the longest prompt, 0 where the processor does not read all of them."""
    try:
        return max(processed(loaded, one, pictures[one.id])["input_ids"].shape[1] for one in examples)
    # Processors raise all kinds of errors for prompts that they do not read.
    except Exception as error:
        blame(error)
        return 0


def response_batch(probe: Probe, pairs: Pairs, *, wider: int = 0) -> ResponseBatch:
    """Return right-padded responses, by `wider` more than they need; padding is a token like any other."""
    width = max(len(ids) for _, ids in pairs) + wider
    shape = (len(pairs), width)
    input_ids = torch.full(shape, probe.pairs[0][1][0])
    mask = torch.zeros(shape, dtype=torch.bool)
    for row, (_, ids) in enumerate(pairs):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = True
    index = torch.tensor([prompt for prompt, _ in pairs])
    author = torch.zeros(len(pairs), dtype=torch.long)
    responses = ResponseBatch(prompt_index=index, input_ids=input_ids, mask=mask, author=author)
    return responses.to(probe.loaded.device)


def vocabulary_size(loaded: LoadedModel) -> int:
    """Return how many ids the tokenizer knows and the output layer has rows for."""
    return min(len(loaded.tokenizer), len(loaded.head.weight))


def long_example(probe: Probe) -> Example:
    """Return a prompt with the first one's pictures that is longer than all others."""
    return _example("long", " ".join(QUESTIONS * 3), num_images=probe.num_pictures[0])


def recoloured(probe: Probe, row: int) -> Probe:
    """Return the probe with other pictures, of the same sizes, in one of its prompts."""
    id = probe.examples[row].id
    other = tuple(_draw("black", *one.size) for one in probe.pictures[id])
    return replace(probe, pictures={**probe.pictures, id: other})


def _example(id: str, question: str, *, num_images: int) -> Example:
    content: tuple[Text | Image, ...] = (*[Image() for _ in range(num_images)], Text(text=question))
    images = tuple(f"{id}-{number}" for number in range(num_images))
    return Example(id=id, messages=(Message(role="user", content=content),), images=images)


def _draw(color: str, width: int, height: int) -> Picture.Image:
    """Return a picture with a coloured block off the centre, so that its patches differ."""
    image = Picture.new("RGB", (width, height), "white")
    image.paste(Picture.new("RGB", (width // 2, height // 2), color), (1, 2))
    return image


def _responses(loaded: LoadedModel, lengths: Sequence[tuple[int, int]]) -> list[tuple[int, tuple[int, ...]]]:
    """Return responses of ids spread over the vocabulary; two of them end by the stop token."""
    special = {*loaded.tokenizer.all_special_ids, *loaded.stop_ids, *loaded.image_token_ids}
    plain = [token_id for token_id in range(vocabulary_size(loaded)) if token_id not in special]
    count = sum(length for _, length in lengths)
    ids = iter([plain[number * len(plain) // count] for number in range(count)])
    rows = [(prompt, [next(ids) for _ in range(length)]) for prompt, length in lengths]
    for _, row in rows[:2]:
        row[-1] = loaded.stop_ids[0]
    return [(prompt, tuple(row)) for prompt, row in rows]
