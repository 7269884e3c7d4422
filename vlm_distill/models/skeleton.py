"""Models without weights: what config, tokenizer and processor tell, and a body on the meta device."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoProcessor, GenerationConfig

from vlm_distill.adapters.adapter import Adapter, LoadedModel
from vlm_distill.adapters.catalog import find_adapter
from vlm_distill.adapters.chat import find_image_token_ids, find_stop_ids
from vlm_distill.errors import AdapterError, one_line
from vlm_distill.models.load import load_config, load_tokenizer
from vlm_distill.models.names import resolve

SKELETON = "skeleton"
"""The fingerprint of a model without weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairSide:
    """What one model of a pair is, without its weights."""

    name: str
    adapter: Adapter
    config: Any
    processor: Any
    tokenizer: Any
    stop_ids: tuple[int, ...]


def load_side(name: str, *, trust_remote_code: bool = False) -> PairSide:
    """Return the side that the model `name` is (see catalog.py); no weights are read or fetched."""
    path = resolve(name, weights=False, trust_remote_code=trust_remote_code)
    config = load_config(path, name, trust_remote_code=trust_remote_code)
    adapter = find_adapter(config.model_type)
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    is_text = set(adapter.parts) == {"language"}
    shared = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    has_generation = (path / "generation_config.json").is_file()
    try:
        processor = tokenizer if is_text else AutoProcessor.from_pretrained(path, **shared)
        generation = (
            GenerationConfig.from_pretrained(path, local_files_only=True)
            if has_generation
            else GenerationConfig.from_model_config(config)
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise AdapterError(f"{name}: cannot be read: {one_line(error)}") from None
    return PairSide(
        name=name,
        adapter=adapter,
        config=config,
        processor=processor,
        tokenizer=tokenizer,
        stop_ids=find_stop_ids(generation, tokenizer),
    )


def load_skeleton(name: str, *, trust_remote_code: bool = False) -> LoadedModel:
    """Return a model with weights on the meta device: every shape is right, nothing is read or allocated."""
    side = load_side(name, trust_remote_code=trust_remote_code)
    return LoadedModel(
        adapter=side.adapter,
        model=meta_model(side),
        processor=side.processor,
        tokenizer=side.tokenizer,
        path=name,
        fingerprint=SKELETON,
        stop_ids=side.stop_ids,
        image_token_ids=find_image_token_ids(side.config),
    )


def meta_model(side: PairSide) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = side.adapter.model_class.from_config(side.config)
    return model.eval()
