"""A tiny model with its tokens under other ids: tokenizer, configs, embeddings and output layer moved."""

import copy
import json
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.models.load import wrap_model

ENDINGS = ("token_id", "token_index")


def random_places(loaded: LoadedModel, seed: int = 0) -> torch.Tensor:
    """Return another id for each of the model's ids, padding included."""
    width = loaded.model.get_input_embeddings().weight.shape[0]
    return torch.randperm(width, generator=torch.Generator().manual_seed(seed))


def permuted(loaded: LoadedModel, places: torch.Tensor) -> LoadedModel:
    """Return a copy of the model in which token i has the id places[i]."""
    moved, processor = copy.deepcopy(loaded.model), copy.deepcopy(loaded.processor)
    layers = {id(one): one for one in (moved.get_input_embeddings(), moved.get_output_embeddings())}
    weights = {id(part): part for layer in layers.values() for part in layer.parameters(recurse=False)}
    for part in weights.values():
        part.data = part.data[places.argsort()]
    # A text model has one config.
    for config in {id(one): one for one in (moved.config, moved.config.get_text_config())}.values():
        _move_ids(config, places)
    _move_ids(moved.generation_config, places)
    tokenizer = _moved_tokenizer(loaded.tokenizer, places)
    if processor is not loaded.processor and hasattr(processor, "tokenizer"):
        processor.tokenizer = tokenizer
        _move_ids(processor, places)
    else:
        processor = tokenizer
    return wrap_model(loaded.adapter, moved.eval(), processor, path=f"permuted-{loaded.path}")


def _move_ids(config: Any, places: torch.Tensor) -> None:
    names = config.to_dict() if hasattr(config, "get_text_config") else vars(config)
    for name in [name for name in names if name.endswith(ENDINGS)]:
        value = getattr(config, name, None)
        if isinstance(value, int):
            setattr(config, name, int(places[value]))
        elif isinstance(value, list):
            setattr(config, name, [int(places[one]) for one in value])


def _moved_tokenizer(tokenizer: Any, places: torch.Tensor) -> PreTrainedTokenizerFast:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # Added tokens get the ids of the vocabulary's words of their names.
    state["model"]["vocab"] = {token: int(places[i]) for token, i in tokenizer.get_vocab().items()}
    for token in state["added_tokens"]:
        token["id"] = int(places[token["id"]])
    kept = {"chat_template": tokenizer.chat_template, "model_max_length": tokenizer.model_max_length}
    moved = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        **kept,
        **tokenizer.special_tokens_map,
    )
    expected = {token: int(places[i]) for token, i in tokenizer.get_vocab().items()}
    assert moved.get_vocab() == expected
    return moved
