"""Prompts through a model's own chat template and processor, and what its files say of ends and images."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image as Picture
from torch import Tensor
from transformers.utils import chat_template_utils

from vlm_distill.adapters.foreign import blaming
from vlm_distill.adapters.padding import Encoding, pad_prompts
from vlm_distill.adapters.pixel_bounds import require_few_pixels
from vlm_distill.adapters.plain_text import with_plain_text
from vlm_distill.adapters.turns import end_of_turn
from vlm_distill.batches import PromptBatch
from vlm_distill.errors import AdapterError
from vlm_distill.records import Example, Text
from vlm_distill.templates import BoundedEnvironment

_MOST_STOPS = 1000
# Chat templates are a stranger's programs, which transformers compiles and runs in the sandbox of this name.
chat_template_utils.ImmutableSandboxedEnvironment = BoundedEnvironment


def encode_text(
    tokenizer: Any, examples: Sequence[Example], images: Sequence[Sequence[Picture.Image]]
) -> PromptBatch:
    """Return the prompts of a text model; an example with images is an AdapterError."""
    require_chat_template(tokenizer)
    encodings = []
    for example, pictures in zip(examples, images, strict=True):
        if pictures or _num_image_parts(example):
            raise AdapterError(
                f"example {example.id}: {len(pictures)} images for a model that reads text only; "
                "choose an image-text model or prompts without images"
            )
        # Templates of text models join `content` as a string, not as a list of parts.
        chat = [{"role": m.role, "content": "".join(_texts(m.content))} for m in example.messages]
        encodings.append(_render(tokenizer, chat, example.id))
    return pad_prompts(encodings, pad_id=pad_id(tokenizer))


def encode_image_text(
    processor: Any,
    examples: Sequence[Example],
    images: Sequence[Sequence[Picture.Image]],
    *,
    with_rows: Callable[[Encoding], Encoding] = dict,
) -> PromptBatch:
    """Return the prompts of an image-text model; prompts without images may be among them.

    `with_rows` is for a processor whose tensors have no rows along the first axis that belong to a prompt.
    """
    require_chat_template(processor)
    encodings = [
        with_rows(_render(processor, _chat_with_pictures(example, pictures), example.id, pictures))
        for example, pictures in zip(examples, images, strict=True)
    ]
    return pad_prompts(encodings, pad_id=pad_id(processor.tokenizer))


def require_chat_template(processor: Any) -> None:
    if getattr(processor, "chat_template", None) is None:
        kind = type(processor).__name__
        name = getattr(processor, "name_or_path", "") or kind
        # From a folder a processor gets what its class names; tokenizers take templates all the same.
        if (
            hasattr(processor, "tokenizer")
            and "chat_template" not in inspect.signature(processor.__init__).parameters
        ):
            raise AdapterError(
                f"{name}: {kind} reads no chat template, so it has no turns; choose another model"
            )
        raise AdapterError(
            f"{name}: the model has no chat template; add a chat_template.jinja to its folder, "
            "or use the instruction-tuned version of the model"
        )


def _texts(content: Sequence[Any]) -> list[str]:
    return [part.text for part in content if isinstance(part, Text)]


def _num_image_parts(example: Example) -> int:
    return sum(not isinstance(part, Text) for message in example.messages for part in message.content)


def _chat_with_pictures(example: Example, pictures: Sequence[Picture.Image]) -> list[dict[str, Any]]:
    if len(pictures) != _num_image_parts(example):
        raise AdapterError(
            f"example {example.id}: {_num_image_parts(example)} image parts in its messages, "
            f"but {len(pictures)} images; they must agree"
        )
    left = iter(pictures)
    chat = []
    for message in example.messages:
        parts = [
            {"type": "text", "text": part.text}
            if isinstance(part, Text)
            else {"type": "image", "image": next(left)}
            for part in message.content
        ]
        chat.append({"role": message.role, "content": parts})
    return chat


def _render(
    processor: Any, chat: list[dict[str, Any]], example_id: str, pictures: Sequence[Picture.Image] = ()
) -> Encoding:
    with _cannot_encode(example_id, chat):
        require_few_pixels(processor, pictures)
        processor, chat = with_plain_text(processor, chat)
        encoding = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    # Some processors count what they made in lists beside the tensors.
    return {name: value for name, value in encoding.items() if isinstance(value, Tensor)}


@contextmanager
def _cannot_encode(example_id: str, chat: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Turn whatever templates, processors and tokenizers raise into one AdapterError about the example."""
    roles = ", ".join(turn["role"] for turn in chat)
    what = f"example {example_id}: its turns ({roles}) cannot be encoded"
    remedy = (
        "change the example, leave such ones out (data.overrides=[on_bad_row=skip]), or choose another model"
    )
    with blaming(what, remedy=remedy):
        try:
            yield
        except AdapterError as error:
            raise AdapterError(f"{what}: {error}") from None


def placeholder_ids(processor: Any, example: Example) -> list[int]:
    """Return the ids of the prompt of an image-text model with one placeholder for each image.

    Raises:
        AdapterError: as for a whole encoding.
    """
    chat: list[dict[str, Any]] = [{**message.as_chat()} for message in example.messages]
    with _cannot_encode(example.id, chat):
        processor, chat = with_plain_text(processor, chat)
        text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        # As transformers does it: a template that writes the first token itself gets no second one.
        bos = processor.tokenizer.bos_token
        has_bos = bos is not None and text.startswith(bos)
        ids: list[int] = processor.tokenizer(text, add_special_tokens=not has_bos)["input_ids"]
    return ids


def pad_id(tokenizer: Any) -> int:
    """Return the id for padding: masked everywhere, so any id that is not an image placeholder serves."""
    known = [tokenizer.pad_token_id, tokenizer.eos_token_id, 0]
    return int(next(token_id for token_id in known if token_id is not None))


def find_stop_ids(generation_config: Any, processor: Any) -> tuple[int, ...]:
    """Return the ids that end a response, the one with which labels end first.

    That is what the chat template writes behind an answer, else the tokenizer's eos token. Then come those
    of the generation config (or None), which may list other ends.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    named = [tokenizer.eos_token_id, *configured_stops(generation_config)]
    known = [int(token_id) for token_id in named if token_id is not None and token_id >= 0]
    # Every new token is compared with all of them.
    if len(known) > _MOST_STOPS or any(token_id >= 1 << 63 for token_id in known):
        raise AdapterError(
            f"{tokenizer.name_or_path}: generation_config.json: expected at most {_MOST_STOPS:,} ids of "
            "tokens as eos_token_id; keep those that end an answer"
        )
    end = end_of_turn(processor, stop_ids=known)
    found = dict.fromkeys(known if end is None else [end, *known])
    if not found:
        raise AdapterError(
            f"{tokenizer.name_or_path}: chat template, generation_config.json and tokenizer have no token "
            "that ends an answer; set eos_token_id, or responses never end"
        )
    return tuple(found)


def configured_stops(generation_config: Any) -> list[Any]:
    """Return the stop ids of a generation config, which has one, several or none."""
    configured = getattr(generation_config, "eos_token_id", None)
    return list(configured) if isinstance(configured, (list, tuple)) else [configured]


def find_image_token_ids(config: Any, processor: Any) -> tuple[int, ...]:
    """Return the ids whose embeddings are replaced by image features; a response must never contain one.

    The config has it, else the processor.
    """
    named = [getattr(config, name, None) for name in ("image_token_id", "image_token_index")]
    named.append(getattr(processor, "image_token_id", None))
    found = next((token_id for token_id in named if token_id is not None), None)
    return () if found is None else (int(found),)
