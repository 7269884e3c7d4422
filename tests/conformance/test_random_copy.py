"""A random copy has every kind of layer of its model, no weight of it, and runs with its processor."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.families.packed_like import minicpmv4_6
from tests.families.text import causal_lm
from tests.tiny import VISION, tiny_llava
from tests.tiny_families import FAMILIES
from tests.tiny_qwen import tiny_qwen
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.catalog import find_adapter
from vlm_distill.conformance.probes import probe_of
from vlm_distill.conformance.random_copy import random_copy
from vlm_distill.conformance.smaller import CUTS, NARROW
from vlm_distill.models.layers import find_layers
from vlm_distill.models.load import wrap_model

KINDS: Mapping[str, tuple[dict[str, Any], int]] = {
    "gemma3_text": ({"num_hidden_layers": 12, "head_dim": 8, "sliding_window": 8}, 6),
    "jamba": (
        {
            "num_hidden_layers": 8,
            "attn_layer_period": 4,
            "attn_layer_offset": 2,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
        3,
    ),
    "qwen3_moe": (
        {
            "num_hidden_layers": 8,
            "mlp_only_layers": [0, 1, 2],
            "head_dim": 8,
            "num_experts": 32,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
        },
        4,
    ),
}


def text_model(name: str, **settings: Any) -> LoadedModel:
    model, tokenizer = causal_lm(name, settings)
    return wrap_model(find_adapter(name), model, tokenizer, path=name)


def num_layers(loaded: LoadedModel) -> int:
    layers: Any = loaded.model.get_submodule(find_layers(loaded.model))
    return len(layers)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_weight_of_a_copy_is_random_and_the_model_is_left_as_it_is(family: str) -> None:
    loaded = FAMILIES[family]()
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    copied = random_copy(loaded)
    assert copied.said == CUTS[0].said
    parameters = copied.loaded.model.named_parameters()
    assert [name for name, value in parameters if len(value.unique()) < value.numel() / 2] == []
    after = loaded.model.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    others = copied.loaded.model.state_dict()
    kept = [name for name, value in others.items() if torch.equal(value, after[name])]
    assert not [name for name in kept if after[name].is_floating_point()]


def test_two_of_many_equal_layers_stay_with_their_width_and_vocabulary() -> None:
    loaded = text_model("llama", num_hidden_layers=12, intermediate_size=1024)
    copied = random_copy(loaded).loaded
    assert num_layers(copied) == 2
    assert copied.model.config.intermediate_size == NARROW
    for name in ("hidden_size", "vocab_size"):
        assert getattr(copied.model.config, name) == getattr(loaded.model.config, name)


@pytest.mark.parametrize("family", KINDS)
def test_as_many_layers_stay_as_show_every_kind(family: str) -> None:
    settings, count = KINDS[family]
    copied = random_copy(text_model(family, **settings))
    assert copied.said == CUTS[0].said
    assert num_layers(copied.loaded) == count


def test_a_layer_of_a_tower_that_is_read_is_one_of_those_that_are_left() -> None:
    deep = tiny_llava.__wrapped__(vision={**VISION, "layers": 6}, vision_feature_layer=-5)
    config = random_copy(deep).loaded.model.config
    assert config.vision_config.num_hidden_layers == 2
    assert config.vision_feature_layer == -2


def test_a_layer_of_a_tower_behind_which_patches_are_merged_is_left() -> None:
    model, processor = minicpmv4_6()
    config = copy.deepcopy(model.config)
    config.vision_config.num_hidden_layers = 6
    config.insert_layer_id = config.vision_config.insert_layer_id = 3
    loaded = wrap_model(find_adapter("minicpmv4_6"), type(model)(config), processor, path="tiny-minicpm")
    left = random_copy(loaded).loaded.model.config
    assert left.vision_config.num_hidden_layers == 2
    assert left.insert_layer_id == left.vision_config.insert_layer_id == 1


def test_listed_layers_of_a_tower_stand_before_one_that_is_not_listed() -> None:
    loaded = tiny_qwen("qwen2_5_vl")
    config = copy.deepcopy(loaded.model.config)
    config.vision_config.depth, config.vision_config.fullatt_block_indexes = 6, [2, 5]
    copied = random_copy(replace(loaded, model=type(loaded.model)(config)))
    assert copied.said == CUTS[0].said
    smaller = copied.loaded.model.config.vision_config
    assert (smaller.depth, smaller.fullatt_block_indexes) == (3, [0, 1])


def test_what_does_not_run_when_it_is_smaller_stays_as_it_is() -> None:
    class Whole(LlamaForCausalLM):
        """A family whose layers are as many as they must be."""

        def __init__(self, config: Any) -> None:
            if config.num_hidden_layers < 3:
                raise ValueError("expected 3 layers")
            super().__init__(config)

    loaded = text_model("llama", num_hidden_layers=3)
    copied = random_copy(replace(loaded, model=Whole(loaded.model.config)))
    assert copied.said == CUTS[-1].said
    assert num_layers(copied.loaded) == 3


def test_a_window_is_shorter_than_the_prompts_that_are_asked() -> None:
    model = text_model("gemma3_text", num_hidden_layers=6, head_dim=8, sliding_window=512)
    copied: Any = random_copy(model).loaded
    assert copied.model.config.sliding_window == 16
    assert probe_of(copied).prompts.attention_mask.sum(dim=1).max() > 16
