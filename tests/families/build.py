"""What the tiny families share: a byte-level tokenizer, sizes of a language model, and random weights."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

Tiny: TypeAlias = tuple[nn.Module, Any]
"""A model of transformers in eval mode, and its processor (a tokenizer for text models)."""
Build: TypeAlias = Callable[[], Tiny]

END, PAD, START = "<|im_end|>", "<|endoftext|>", "<|im_start|>"
TEXT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A picture is the placeholder of its family in the place of IMAGE.
IMAGE_TEXT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LANGUAGE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
}


def byte_tokenizer(*special: str, **settings: Any) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte, the turn tokens, and `special` ones behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([PAD, START, END, *special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, model_max_length=4096, **settings
    )


def language(tokenizer: Any, **settings: Any) -> dict[str, Any]:
    """Return the settings of a tiny language model for a tokenizer; more or other ones in `settings`."""
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    return {**LANGUAGE, **ids, "vocab_size": len(tokenizer), **settings}


def randomised(model: Any, *, seed: int = 0) -> Any:
    """Return a model, in eval mode, all of whose weights are random, in place: gates, biases and norms too.

    A zero gate or bias would hide that something is not reached.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.ndim > 1 else 0.1
            noise = scale * torch.randn(parameter.shape, generator=generator)
            # Norms and scales of one dimension stay near what they were, so that nothing overflows.
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    model.tie_weights()
    return model.eval()


def names(families: Sequence[Build]) -> dict[str, Build]:
    """Return the families by the names of their functions."""
    return {build.__name__: build for build in families}
