"""The generic path for Hugging Face text and image-text models: most families need nothing else.

Prompts go through the model's own chat template and processor. Which family a folder belongs to is decided in
catalog.py.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from jinja2 import TemplateError
from PIL import Image as Picture
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Cache,
)

from vlm_distill.adapters.adapter import Adapter
from vlm_distill.adapters.key_values import cache_argument
from vlm_distill.adapters.vision_features import forward_inputs
from vlm_distill.batches import Head, PromptBatch
from vlm_distill.errors import AdapterError, one_line
from vlm_distill.records import Example, Text

# One value per prompt token, so not rows of an image. A family that needs the type ids rebuilds them from the
# input ids.
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
Encoding = Mapping[str, Tensor]


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
        _render(processor, _chat_with_pictures(processor, example, pictures), example.id)
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


def _chat_with_pictures(
    processor: Any, example: Example, pictures: Sequence[Picture.Image]
) -> list[dict[str, Any]]:
    if len(pictures) != _num_image_parts(example):
        raise AdapterError(
            f"example {example.id}: {_num_image_parts(example)} image parts in its messages, "
            f"but {len(pictures)} images; they must agree"
        )
    marker = getattr(processor, "image_token", None)
    left = iter(pictures)
    chat = []
    for message in example.messages:
        if marker and any(marker in text for text in _texts(message.content)):
            raise AdapterError(
                f"example {example.id}: its text contains the image placeholder {marker!r}; "
                "write an image part instead"
            )
        parts = [
            {"type": "text", "text": part.text}
            if isinstance(part, Text)
            else {"type": "image", "image": next(left)}
            for part in message.content
        ]
        chat.append({"role": message.role, "content": parts})
    return chat


def _render(processor: Any, chat: list[dict[str, Any]], example_id: str) -> Encoding:
    try:
        encoding = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(turn["role"] for turn in chat)
        raise AdapterError(
            f"example {example_id}: its turns ({roles}) cannot be encoded: {one_line(error)}"
        ) from None
    return dict(encoding)


def pad_id(tokenizer: Any) -> int:
    """Return the id for padding: masked everywhere, so any id that is not an image placeholder serves."""
    known = [tokenizer.pad_token_id, tokenizer.eos_token_id, 0]
    return int(next(token_id for token_id in known if token_id is not None))


def pad_prompts(encodings: Sequence[Encoding], *, pad_id: int) -> PromptBatch:
    """Return prompts that were encoded one by one (batch axis 1) as one left-padded batch."""
    width = max(encoding["input_ids"].shape[1] for encoding in encodings)
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
    input_ids: Int[Tensor, "b t"],
    attention_mask: Int[Tensor, "b seen"] | Shaped[Tensor, "b 1 t t"],
    position_ids: Int[Tensor, "*axes b t"],
    extras: Mapping[str, Tensor],
    cache: Cache | None,
) -> Float[Tensor, "b t width"]:
    """Return the hidden states after the final norm and compute no logits; `cache` grows by the tokens."""
    base: Any = model.base_model
    output = base(
        attention_mask=attention_mask,
        position_ids=position_ids,
        use_cache=cache is not None,
        **cache_argument(base, cache),
        **forward_inputs(model, input_ids, extras),
    )
    hidden: Tensor = output.last_hidden_state
    # The last layer may live on another device than the first.
    return hidden.to(input_ids.device)


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


def find_stop_ids(generation_config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the ids that end a response: of the generation config (or None), then of the tokenizer."""
    configured = getattr(generation_config, "eos_token_id", None)
    ids = list(configured) if isinstance(configured, (list, tuple)) else [configured]
    found = dict.fromkeys(
        int(token_id) for token_id in [*ids, tokenizer.eos_token_id] if token_id is not None
    )
    if not found:
        raise AdapterError(
            f"{tokenizer.name_or_path}: neither generation_config.json nor the tokenizer has an eos token; "
            "set eos_token_id, or responses never end"
        )
    return tuple(found)


def find_image_token_ids(config: Any) -> tuple[int, ...]:
    """Return the ids whose embeddings are replaced by image features; a response must never contain one."""
    found = getattr(config, "image_token_id", None)
    return () if found is None else (int(found),)


def image_text_adapter(
    name: str,
    model_types: tuple[str, ...],
    *,
    parts: Mapping[str, tuple[str, ...]],
    vision_features: Callable[..., Tensor] | None = None,
    state_dict_names: Callable[[Any, str], str] | None = None,
) -> Adapter:
    """Return the adapter of an image-text family that numbers positions sequentially."""
    return Adapter(
        name=name,
        model_types=model_types,
        model_class=AutoModelForImageTextToText,
        processor_class=AutoProcessor,
        encode=encode_image_text,
        backbone=hidden_states,
        position_ids=sequential_positions,
        head=output_head,
        parts=parts,
        vision_features=vision_features,
        state_dict_names=state_dict_names,
    )


CAUSAL_LM = Adapter(
    name="causal_lm",
    model_types=(),
    model_class=AutoModelForCausalLM,
    processor_class=AutoTokenizer,
    encode=encode_text,
    backbone=hidden_states,
    position_ids=sequential_positions,
    head=output_head,
    parts={"language": ("",)},
)
