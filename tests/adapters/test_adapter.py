"""A family whose body is not the model's own forward: training and sampling reach it by the same door."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import RwkvConfig, RwkvForCausalLM

from tests.prompts import responses_of
from tests.tiny import example, picture, tiny_llava, tiny_text_model
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.causal_lm import CAUSAL_LM
from vlm_distill.adapters.chat import hidden_states
from vlm_distill.errors import AdapterError
from vlm_distill.forward import prefix_shared_hidden, response_hidden, tree_attention_hidden, unshared_hidden
from vlm_distill.generation.decoding import own_suppressed_ids
from vlm_distill.generation.engine import Completion, Sampling
from vlm_distill.generation.transformers_engine import TransformersEngine
from vlm_distill.models.feature_store import FeatureStore, VisionCacheConfig
from vlm_distill.models.load import wrap_model
from vlm_distill.models.vision_cache import with_vision_cache
from vlm_distill.records import Example

SHIFT = torch.linspace(-3, 3, 16)


def shifted_states(*arguments: object) -> Tensor:
    return hidden_states(*arguments) + SHIFT


def shifted(loaded: LoadedModel) -> LoadedModel:
    """Return the model in a family that adds a constant vector to what its body says."""
    return replace(loaded, adapter=replace(loaded.adapter, name="shifted", backbone=shifted_states))


def llava_from_features() -> LoadedModel:
    return with_vision_cache(tiny_llava(), FeatureStore(VisionCacheConfig(), folder=None))


FAMILIES = {"text": tiny_text_model, "llava": tiny_llava, "llava from features": llava_from_features}
every_family = pytest.mark.parametrize("build", FAMILIES.values(), ids=FAMILIES)


def prompts_for(loaded: LoadedModel) -> list[Example]:
    images = 1 if loaded.image_token_ids else 0
    return [example("a", "What color is it?", num_images=images), example("b", "no"), example("c", "red?")]


def load_pictures(one: Example) -> list:
    return [picture("blue") for _ in one.images]


def generated(loaded: LoadedModel, sampling: Sampling) -> list[Completion]:
    engine = TransformersEngine(loaded=loaded, load_images=load_pictures, batch_size=8)
    return engine.generate(prompts_for(loaded), sampling)


@every_family
def test_greedy_sampling_follows_the_body_of_the_adapter(build: Callable[[], LoadedModel]) -> None:
    loaded = build()
    found = generated(shifted(loaded), Sampling(temperature=0, max_new_tokens=5))
    never = torch.tensor(own_suppressed_ids(loaded), dtype=torch.long)
    for one, completion in zip(prompts_for(loaded), found, strict=True):
        # The oracle: the model's own forward, whole and without a cache, for every token.
        prompt = loaded.adapter.encode(loaded.processor, [one], [load_pictures(one)])
        sequence = prompt.input_ids
        for token in completion.token_ids:
            with torch.no_grad():
                states = loaded.model.base_model(input_ids=sequence, **prompt.extras).last_hidden_state
            logits = (states[0, -1] + SHIFT) @ loaded.model.lm_head.weight.T
            assert int(logits.index_fill(0, never, -torch.inf).argmax()) == token
            sequence = torch.cat([sequence, torch.tensor([[token]])], dim=1)
    plain = generated(loaded, Sampling(temperature=0, max_new_tokens=5))
    assert {one.token_ids for one in plain}.isdisjoint(one.token_ids for one in found)


@every_family
@pytest.mark.parametrize("forward", [unshared_hidden, prefix_shared_hidden, tree_attention_hidden])
def test_stored_log_probabilities_are_those_of_the_training_forward(
    build: Callable[[], LoadedModel], forward: Callable[..., Tensor]
) -> None:
    loaded = shifted(build())
    completions = generated(loaded, Sampling(max_new_tokens=5, num_samples=2, seed=1))
    responses = responses_of([(row // 2, list(one.token_ids)) for row, one in enumerate(completions)])
    examples = prompts_for(loaded)
    prompts = loaded.encode(examples, [load_pictures(one) for one in examples])
    with torch.no_grad():
        log_probs = loaded.head.logits(forward(loaded, prompts, responses)).log_softmax(dim=-1)
    found = [value for one in completions for value in one.token_log_probs or ()]
    assert found == pytest.approx(log_probs.gather(1, responses.labels[:, None])[:, 0].tolist(), abs=1e-4)
    with torch.no_grad():
        plain = build().head.logits(forward(build(), prompts, responses)).log_softmax(dim=-1)
    assert (plain - log_probs).abs().max() > 0.1


def test_a_model_without_a_key_value_cache_neither_samples_nor_shares_a_prefix() -> None:
    tokenizer = tiny_text_model().processor
    config = RwkvConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, eos_token_id=1)
    loaded = wrap_model(CAUSAL_LM, RwkvForCausalLM(config).eval(), tokenizer, path="rwkv")
    with pytest.raises(AdapterError, match="RwkvForCausalLM: it keeps no key-value cache"):
        generated(loaded, Sampling(max_new_tokens=2))
    responses = responses_of([(0, [5, 6]), (0, [7, 8])])
    prompts = loaded.encode(prompts_for(loaded)[:1], [[]])
    with pytest.raises(AdapterError, match="keeps no key-value cache"):
        response_hidden(loaded, prompts, responses)
    unable = replace(loaded, adapter=replace(CAUSAL_LM, supports_prefix_sharing=False))
    assert response_hidden(unable, prompts, responses).shape == (4, 16)
