"""The generic path for Hugging Face text and image-text models: most families need nothing else.

These functions are the defaults of the adapter record. Prompts go through the model's own chat template and
processor. Which family a folder belongs to is decided in catalog.py.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from PIL import Image as Picture
from torch import Tensor, nn
from transformers import Cache
from transformers.utils import chat_template_utils

from vlm_distill.adapters.foreign import blaming
from vlm_distill.adapters.pixel_bounds import require_few_pixels
from vlm_distill.adapters.plain_text import with_plain_text
from vlm_distill.adapters.turns import end_of_turn
from vlm_distill.batches import Head, PromptBatch
from vlm_distill.errors import AdapterError
from vlm_distill.records import Example, Text
from vlm_distill.templates import BoundedEnvironment

# One value per prompt token, so not rows of an image. A family that needs the type ids rebuilds them from the
# input ids.
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
Encoding = Mapping[str, Tensor]
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
    processor: Any, examples: Sequence[Example], images: Sequence[Sequence[Picture.Image]]
) -> PromptBatch:
    """Return the prompts of an image-text model; prompts without images may be among them."""
    require_chat_template(processor)
    encodings = [
        _render(processor, _chat_with_pictures(example, pictures), example.id, pictures)
        for example, pictures in zip(examples, images, strict=True)
    ]
    return pad_prompts(encodings, pad_id=pad_id(processor.tokenizer))


def require_chat_template(processor: Any) -> None:
    if getattr(processor, "chat_template", None) is None:
        name = getattr(processor, "name_or_path", "") or type(processor).__name__
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
    return dict(encoding)


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


def pad_prompts(encodings: Sequence[Encoding], *, pad_id: int) -> PromptBatch:
    """Return prompts that were encoded one by one (batch axis 1) as one left-padded batch."""
    width = max(encoding["input_ids"].shape[1] for encoding in encodings)
    # From one [1, token] each to [prompt, width].
    input_ids = torch.full((len(encodings), width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(encodings), width), dtype=torch.long)
    for row, encoding in enumerate(encodings):
        ids = encoding["input_ids"][0]
        input_ids[row, width - len(ids) :] = ids
        attention_mask[row, width - len(ids) :] = 1
    names = sorted({name for encoding in encodings for name in encoding if name not in PER_TOKEN})
    return PromptBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        extras={name: torch.cat([e[name] for e in encodings if name in e]) for name in names},
        extra_counts={name: tuple(e[name].shape[0] if name in e else 0 for e in encodings) for name in names},
    )


def hidden_states(
    model: nn.Module,
    tokens: Int[Tensor, "b t"] | Float[Tensor, "b t width"],
    attention_mask: Int[Tensor, "b seen"] | Shaped[Tensor, "b 1 t t"],
    position_ids: Int[Tensor, "*axes b t"],
    extras: Mapping[str, Tensor],
    cache: Cache | None,
) -> Float[Tensor, "b t width"]:
    """Return the hidden states after the final norm and compute no logits; `cache` grows by the tokens.

    Floating-point extras get the dtype of the model, because processors make float32 pixels.

    Raises:
        AdapterError: the model does not fill the cache that it is given.
    """
    base: Any = model.base_model
    dtype = dtype_of(model)
    # The name of the cache since transformers 5.24, and the one before.
    cache_name = "cache" if "cache" in inspect.signature(base.forward).parameters else "past_key_values"
    output = base(
        attention_mask=attention_mask,
        position_ids=position_ids,
        use_cache=cache is not None,
        **{cache_name: cache, "inputs_embeds" if tokens.is_floating_point() else "input_ids": tokens},
        **{
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in extras.items()
            # A selection of prompts without images still carries their empty tensors.
            if len(value)
        },
    )
    if cache is not None and cache_name not in output:
        raise AdapterError(
            f"{type(model).__name__}: it keeps no key-value cache of transformers, so nothing can continue "
            "a prompt; choose another model"
        )
    hidden: Tensor = output.last_hidden_state
    # The last layer may live on another device than the first.
    return hidden.to(tokens.device)


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return the dtype of the model's first floating-point weight; quantised weights are integers."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def sequential_positions(
    model: nn.Module,
    input_ids: Int[Tensor, "b t"],
    attention_mask: Int[Tensor, "b t"],
    extras: Mapping[str, Tensor],
) -> Int[Tensor, "b t"]:
    """Return positions that count the attended tokens of each row, whatever stands left of them."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def output_head(model: nn.Module) -> Head:
    """Return the live output layer with the scale and soft cap that its family applies to logits."""
    loaded: Any = model
    layer = loaded.get_output_embeddings()
    config = loaded.config.get_text_config()
    scale = 1.0
    # Cohere multiplies by logit_scale, Falcon-H1 by lm_head_multiplier, Granite divides by logits_scaling.
    scale *= getattr(config, "logit_scale", None) or 1.0
    scale *= getattr(config, "lm_head_multiplier", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    soft_cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2 and later
    return Head(
        weight=layer.weight,
        bias=getattr(layer, "bias", None),
        scale=float(scale),
        soft_cap=None if soft_cap is None else float(soft_cap),
    )


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
    # Every new token is compared with all of them.
    if len(found) > _MOST_STOPS or any(token_id >= 1 << 63 for token_id in found):
        raise AdapterError(
            f"{tokenizer.name_or_path}: generation_config.json: expected at most {_MOST_STOPS:,} ids of "
            "tokens as eos_token_id; keep those that end an answer"
        )
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


def find_image_token_ids(config: Any) -> tuple[int, ...]:
    """Return the ids whose embeddings are replaced by image features; a response must never contain one."""
    found = getattr(config, "image_token_id", None)
    return () if found is None else (int(found),)
