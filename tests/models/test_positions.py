import copy
from dataclasses import replace

import pytest
import torch

from tests.prompts import prompts_of
from tests.tiny import tiny_llava, tiny_text_model
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.models.positions import has_room, have_room, max_positions


def with_config(loaded: LoadedModel, **settings: object) -> LoadedModel:
    """Return a model whose (inner) language model says something else in its config."""
    model = copy.copy(loaded.model)
    model.config = copy.deepcopy(model.config)
    text = model.config.get_text_config()
    for key, value in settings.items():
        setattr(text, key, value)
    return replace(loaded, model=model)


def test_the_positions_are_those_of_the_language_model():
    assert max_positions(with_config(tiny_text_model(), max_position_embeddings=77)) == 77
    assert max_positions(with_config(tiny_llava(), max_position_embeddings=77)) == 77


@pytest.mark.parametrize("said", [0, -1])
def test_a_family_that_counts_no_positions_has_room_for_all(said: int):
    endless = with_config(tiny_text_model(), max_position_embeddings=said)
    assert max_positions(endless) is None
    assert has_room(endless, 10**9)


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        ({"rope_type": "default"}, 100),
        ({"rope_type": "linear", "factor": 4.0}, 400),
        # Chosen for a batch by its longest row.
        ({"rope_type": "dynamic", "factor": 2.5}, 100),
        # As Qwen2.5 has it: the base stands in both places.
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100}, 400),
        # As gpt-oss has it: the config counts what YaRN makes of the base.
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 25}, 100),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 50}, 100),
        ({"rope_type": "longrope", "factor": 8.0, "original_max_position_embeddings": 50}, 50),
        # As Gemma 3 has it: a rope for each kind of layer.
        ({"full_attention": {"rope_type": "linear", "factor": 8.0}}, 100),
    ],
)
def test_scaled_ropes_end_where_rows_would_depend_on_others(rope: dict[str, object], positions: int):
    loaded = with_config(tiny_text_model(), max_position_embeddings=100, rope_parameters=rope)
    assert max_positions(loaded) == positions


def test_a_sliding_window_is_no_limit():
    assert max_positions(with_config(tiny_text_model(), max_position_embeddings=100, sliding_window=8)) == 100


def test_a_prompt_has_room_up_to_the_last_position():
    loaded = tiny_llava()
    prompts = prompts_of(loaded)
    lengths = prompts.attention_mask.sum(dim=1)
    longest = int(lengths.max())
    one = torch.tensor([1, 1, 1])
    tight = with_config(loaded, max_position_embeddings=longest + 1)
    assert have_room(tight, prompts, one) == [True, True, True]
    tighter = with_config(loaded, max_position_embeddings=longest)
    assert have_room(tighter, prompts, one) == (lengths < longest).tolist()
    assert have_room(tighter, prompts, one - 1) == [True, True, True]
