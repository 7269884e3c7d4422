"""A tiny random model of each family that is held to all checks, and of text families that deviate."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    JambaConfig,
    JambaForCausalLM,
)

from tests import tiny_qwen
from tests.tiny import LANGUAGE, tiny_llava, tiny_text_model
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.catalog import find_adapter
from vlm_distill.models.load import wrap_model


@lru_cache(maxsize=8)
def _text(config_class: Any, model_class: Any, **settings: Any) -> LoadedModel:
    """Return a random text model with the tokenizer of `tiny_text_model`; the object is shared."""
    tokenizer = tiny_text_model().tokenizer
    ids = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = config_class(vocab_size=len(tokenizer), initializer_range=0.3, **ids, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config)
    return wrap_model(find_adapter(config.model_type), model.eval(), tokenizer, path=config.model_type)


# Its positions are absolute: rotary families do not notice when all are moved.
tiny_gpt2 = partial(_text, GPT2Config, GPT2LMHeadModel, n_embd=16, n_layer=2, n_head=2, n_positions=64)
# It divides its logits.
tiny_granite = partial(
    _text, GraniteConfig, GraniteForCausalLM, **LANGUAGE, num_key_value_heads=2, logits_scaling=8.0
)
# A recurrent layer, which starts from zero when several tokens follow a cache, and an attention layer.
tiny_jamba = partial(
    _text,
    JambaConfig,
    JambaForCausalLM,
    **LANGUAGE,
    num_key_value_heads=2,
    num_experts=1,
    attn_layer_period=2,
    attn_layer_offset=1,
    mamba_d_state=4,
    mamba_dt_rank=4,
    use_mamba_kernels=False,
)

# It attends both ways, and transforms hidden states before its output layer.
tiny_bert = partial(_text, BertConfig, BertLMHeadModel, **LANGUAGE)

FAMILIES: dict[str, Callable[[], LoadedModel]] = {
    "llama": tiny_text_model,
    "gpt2": tiny_gpt2,
    "llava": tiny_llava,
    **{family: partial(tiny_qwen.tiny_qwen, family) for family in tiny_qwen.FAMILIES},
}
