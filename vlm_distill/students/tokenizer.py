"""A small tokenizer and a compact chat template for models from scratch: few tokens per prompt."""

import copy
from collections.abc import Iterable
from typing import Any

from pydantic import Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vlm_distill.adapters.foreign import blaming
from vlm_distill.config import Record
from vlm_distill.errors import AdapterError

PAD, END, IMAGE = "<|pad|>", "<|end|>", "<image>"
SPECIAL_TOKENS = (PAD, END, "<|system|>", "<|user|>", "<|assistant|>", IMAGE)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{- '<|' + message['role'] + '|>' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<image>' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{- '<|end|>' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
# Put before the template of a text model, it turns content parts into the string that the template expects.
FLATTEN_PARTS = (
    "{%- set flat = namespace(messages=[]) -%}{%- for message in messages -%}"
    "{%- set content = namespace(text='') -%}"
    "{%- if message['content'] is string -%}{%- set content.text = message['content'] -%}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- set content.text = content.text + ('IMAGE_TOKEN' if part['type'] == 'image' else part['text']) -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- set flat.messages = flat.messages + [{'role': message['role'], 'content': content.text}] -%}"
    "{%- endfor -%}{%- set messages = flat.messages -%}"
)


class BpeSettings(Record):
    """A byte-level BPE tokenizer trained on the prompts and references of the run."""

    vocab_size: int = Field(default=512, ge=256 + len(SPECIAL_TOKENS), le=10**6)


class TrainedTokenizer(Record):
    """`tokenizer: {train: {vocab_size: 512}}`: for a model from scratch that has no teacher to agree with."""

    train: BpeSettings


def train_tokenizer(texts: Iterable[str], *, settings: BpeSettings) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with turn markers, an image token and the compact chat template.

    Equal texts in equal order give equal ids; the vocabulary may be smaller than asked for when the texts are
    few.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(SPECIAL_TOKENS[2:]),
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1 << 20,
    )


def with_image_token(tokenizer: Any, *, image_token: str = IMAGE, chat_template: Any = None) -> Any:
    """Return a copy of `tokenizer` that knows `image_token`, with one chat template, which places it.

    `chat_template` replaces the tokenizer's own, for processors that keep a template of their own. Of several
    templates with names that of plain conversations is taken.

    Raises:
        AdapterError: there is no such template.
    """
    result = copy.deepcopy(tokenizer)
    result.chat_template = _default(chat_template or result.chat_template, name=tokenizer.name_or_path)
    if result.convert_tokens_to_ids(image_token) in (None, result.unk_token_id):
        result.add_special_tokens(
            {"additional_special_tokens": [image_token]}, replace_extra_special_tokens=False
        )
    if result.chat_template is None:
        raise AdapterError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template; use an instruction-tuned model "
            "or add a chat_template.jinja to its folder"
        )
    if not _places_images(result, image_token):
        result.chat_template = FLATTEN_PARTS.replace("IMAGE_TOKEN", image_token) + result.chat_template
    return result


def num_ids(tokenizer: Any) -> int:
    """Return how many embedding rows its tokens need; ids may have gaps, so more than there are tokens."""
    return int(max(tokenizer.get_vocab().values())) + 1


def _default(chat_template: Any, *, name: str) -> str | None:
    if not isinstance(chat_template, dict):
        return chat_template  # type: ignore[no-any-return]
    if "default" not in chat_template:
        raise AdapterError(
            f"{name}: expected a chat template named 'default', found {', '.join(sorted(chat_template))}; "
            "add it to the folder as chat_template.jinja"
        )
    return str(chat_template["default"])


def _places_images(tokenizer: Any, image_token: str) -> bool:
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    try:
        with blaming("its chat template cannot render parts"):
            rendered: str = tokenizer.apply_chat_template(chat, tokenize=False)
    except AdapterError:
        # A template of a text model adds a list to a string.
        return False
    return rendered.count(image_token) == 1
