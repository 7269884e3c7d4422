"""What every back end needs of prompts and answers: ids, lengths, generated text."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.batches import PromptBatch
from vlm_distill.data.images import ImageLoader
from vlm_distill.errors import AdapterError
from vlm_distill.progress import progress
from vlm_distill.records import Example, Message

# How many prompts are encoded at once when only their ids are wanted.
ENCODED_TOGETHER = 64
# From so many prompts on, encoding them takes long enough to be watched.
MANY = 4096

FoundT = TypeVar("FoundT")


def prompt_ids(
    loaded: LoadedModel, load_images: ImageLoader, examples: Sequence[Example]
) -> list[tuple[int, ...]]:
    """Return the ids of each prompt, image tokens included."""
    return _of_each_prompt(loaded, load_images, examples, tuple)


def prompt_lengths(loaded: LoadedModel, load_images: ImageLoader, examples: Sequence[Example]) -> list[int]:
    """Return prompt lengths in tokens, image tokens included; no ids are kept."""
    return _of_each_prompt(loaded, load_images, examples, len)


def readable_lengths(
    loaded: LoadedModel, load_images: ImageLoader, examples: Sequence[Example]
) -> tuple[dict[str, int], AdapterError | None]:
    """Return prompt lengths by example id, without prompts that are refused, and the first refusal."""
    found: dict[str, int] = {}
    refusal: AdapterError | None = None
    groups = [examples[at : at + ENCODED_TOGETHER] for at in range(0, len(examples), ENCODED_TOGETHER)]
    for group in progress(groups, label=f"batches of {ENCODED_TOGETHER} prompts") if groups[1:] else groups:
        try:
            found |= _lengths(loaded, load_images, group)
        except AdapterError:
            for example in group:
                try:
                    found |= _lengths(loaded, load_images, [example])
                except AdapterError as error:
                    refusal = refusal or error
    return found, refusal


def _lengths(loaded: LoadedModel, load_images: ImageLoader, examples: Sequence[Example]) -> dict[str, int]:
    lengths = prompt_lengths(loaded, load_images, examples)
    return {example.id: length for example, length in zip(examples, lengths, strict=True)}


def _of_each_prompt(
    loaded: LoadedModel,
    load_images: ImageLoader,
    examples: Sequence[Example],
    take: Callable[[list[int]], FoundT],
) -> list[FoundT]:
    """Return `take` of each prompt's ids.

    They follow from messages and image sizes, so each distinct pair of these is encoded once.
    """
    sizes: dict[tuple[str, ...], tuple[tuple[int, int], ...]] = {}
    keys: list[tuple[tuple[Message, ...], tuple[tuple[int, int], ...]]] = []
    for example in examples:
        if example.images not in sizes:
            sizes[example.images] = tuple(image.size for image in load_images(example))
        keys.append((example.messages, sizes[example.images]))
    first = dict(zip(reversed(keys), reversed(examples), strict=True))
    distinct, found = list(first.values()), list[FoundT]()
    starts: Iterable[int] = range(0, len(distinct), ENCODED_TOGETHER)
    if len(distinct) > MANY:
        starts = progress(starts, label=f"batches of {ENCODED_TOGETHER} prompts encoded for their ids")
    for start in starts:
        some = distinct[start : start + ENCODED_TOGETHER]
        # Ids need no features of images, so not `loaded.encode`.
        pictures = [load_images(example) for example in some]
        found += map(take, unpadded(loaded.adapter.encode(loaded.processor, some, pictures)))
    found_of = dict(zip(first, found, strict=True))
    return [found_of[key] for key in keys]


def unpadded(prompts: PromptBatch) -> list[list[int]]:
    """Return the ids of each prompt without its padding."""
    lengths = prompts.attention_mask.sum(dim=1).tolist()
    rows = prompts.input_ids.tolist()
    return [row[len(row) - length :] for row, length in zip(rows, lengths, strict=True)]


def response_text(loaded: LoadedModel, token_ids: Sequence[int], stop: Sequence[str]) -> str:
    """Return the text of generated ids: without the stop token, and cut at the first of the stop strings."""
    # A stop token need not be a special token, so it is taken off here and not left to the tokenizer.
    shown = token_ids[:-1] if token_ids and token_ids[-1] in loaded.stop_ids else token_ids
    text = decode_ids(loaded.tokenizer, shown)
    ends = [text.find(string) for string in stop if string in text]
    return text[: min(ends)] if ends else text


def decode_ids(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Return the text of ids as it stands, special tokens left out."""
    text: str = tokenizer.decode(
        list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text
