"""A family without a key-value cache; bodies that deviate from the model's own are in tests/conformance."""

from dataclasses import replace

import pytest
from transformers import RwkvConfig, RwkvForCausalLM

from tests.prompts import responses_of
from tests.tiny import example, tiny_text_model
from vlm_distill.adapters.causal_lm import CAUSAL_LM
from vlm_distill.errors import AdapterError
from vlm_distill.forward import response_hidden
from vlm_distill.generation.engine import Sampling
from vlm_distill.generation.transformers_engine import TransformersEngine
from vlm_distill.models.load import wrap_model


def test_a_model_without_a_key_value_cache_neither_samples_nor_shares_a_prefix() -> None:
    tokenizer = tiny_text_model().processor
    config = RwkvConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, eos_token_id=1)
    loaded = wrap_model(CAUSAL_LM, RwkvForCausalLM(config).eval(), tokenizer, path="rwkv")
    engine = TransformersEngine(loaded=loaded, load_images=lambda _: [], batch_size=8)
    with pytest.raises(AdapterError, match="RwkvForCausalLM: it keeps no key-value cache"):
        engine.generate([example("a", "red?")], Sampling(max_new_tokens=2))
    responses = responses_of([(0, [5, 6]), (0, [7, 8])])
    prompts = loaded.encode([example("a", "red?")], [[]])
    with pytest.raises(AdapterError, match="keeps no key-value cache"):
        response_hidden(loaded, prompts, responses)
    unable = replace(loaded, adapter=replace(CAUSAL_LM, supports_prefix_sharing=False))
    assert response_hidden(unable, prompts, responses).shape == (4, 16)
