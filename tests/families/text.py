"""Tiny causal language models of every text family, as settings that make its special structure count."""

from functools import partial
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM

from tests.families import text_dense, text_deviant, text_hybrid, text_moe
from tests.families.build import TEXT_TEMPLATE, Build, Tiny, byte_tokenizer, language, randomised


def causal_lm(name: str, settings: dict[str, Any], **of_tokenizer: Any) -> Tiny:
    """Return a model of a type of transformers: `model_type` of the settings, or else the name.

    `without` names settings of other families that this one refuses.
    """
    tokenizer = byte_tokenizer(chat_template=TEXT_TEMPLATE, **of_tokenizer)
    model_type = settings.get("model_type", name)
    known = language(tokenizer, **{"attention_dropout": 0.0, **settings})
    own = {
        key: value for key, value in known.items() if key not in ("model_type", *settings.get("without", ()))
    }
    config = AutoConfig.for_model(model_type, **own)
    # Some weights of one dimension start at random.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomised(AutoModelForCausalLM.from_config(config)), tokenizer


def hrm_text_prefix() -> Tiny:
    """Return a model whose prompts see themselves both ways, as their token types of 1 say."""
    names = ["input_ids", "token_type_ids", "attention_mask"]
    model, tokenizer = causal_lm("hrm_text", text_dense.SETTINGS["hrm_text"], model_input_names=names)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A:1")
    return model, tokenizer


FAMILIES: dict[str, Build] = {
    name: partial(causal_lm, name, settings)
    for table in (text_dense.SETTINGS, text_moe.SETTINGS, text_hybrid.SETTINGS)
    for name, settings in table.items()
}
FAMILIES["hrm_text_prefix"] = hrm_text_prefix
DEVIANT: dict[str, Build] = {
    name: partial(causal_lm, name, settings) for name, settings in text_deviant.SETTINGS.items()
}
