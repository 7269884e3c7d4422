"""Models without weights: what config, tokenizer and processor tell, and a body on the meta device."""

from typing import Any

from transformers import GenerationConfig

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.catalog import find_adapter
from vlm_distill.adapters.foreign import blaming
from vlm_distill.models.gguf import is_gguf
from vlm_distill.models.load import (
    load_config,
    load_tokenizer,
    remedy_for,
    require_as_many_numbers,
    wrap_model,
)
from vlm_distill.models.names import resolve
from vlm_distill.models.placement import meta_model

SKELETON = "skeleton"
"""The fingerprint of a model without weights."""


def load_skeleton(name: str, *, trust_remote_code: bool = False) -> LoadedModel:
    """Return a model with weights on the meta device: every shape is right, no weight is read or fetched."""
    path = resolve(name, weights=False, trust_remote_code=trust_remote_code)
    config = load_config(path, name, trust_remote_code=trust_remote_code)
    adapter = find_adapter(config.model_type)
    remedy = remedy_for(path, trust_remote_code=trust_remote_code)
    with blaming(f"{name}: cannot be built as its config says", remedy=remedy):
        model: Any = meta_model(adapter.model_class, config, trust_remote_code=trust_remote_code)
    if is_gguf(path):
        return wrap_model(adapter, model, load_tokenizer(name), path=name, fingerprint=SKELETON)
    with blaming(f"{name}: cannot be read", remedy=remedy):
        if any(path.glob("*.safetensors")):
            require_as_many_numbers(model, path)
        processor = adapter.processor_class.from_pretrained(
            path, trust_remote_code=trust_remote_code, local_files_only=True
        )
        if (path / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    return wrap_model(adapter, model, processor, path=name, fingerprint=SKELETON)
