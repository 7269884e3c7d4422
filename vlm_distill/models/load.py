"""A model from its folder, hub id or GGUF file into memory. Models are built from parts in students/."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from vlm_distill.adapters.adapter import Adapter, LoadedModel, LoadOptions
from vlm_distill.adapters.catalog import find_adapter, load_family
from vlm_distill.adapters.chat import find_image_token_ids, find_stop_ids
from vlm_distill.errors import AdapterError, one_line
from vlm_distill.files import read_json
from vlm_distill.models.fingerprint import model_fingerprint, weights_fingerprint
from vlm_distill.models.gguf import UNREADABLE, is_gguf, load_gguf, location
from vlm_distill.models.names import resolve
from vlm_distill.models.placement import finish_loading, is_placed, placement_arguments, require_dtype


def load_model(
    name: str,
    options: LoadOptions = LoadOptions(),  # noqa: B008 (frozen)
    *,
    adapter: Adapter | None = None,
) -> LoadedModel:
    """Return the model that `name` means (path, hub id or `bundled:NAME`), in eval mode and on its device.

    The default adapter is that of its family.

    Raises:
        AdapterError: the name means nothing, the folder is incomplete, or no adapter knows its family.
        DataError: the model of a run is not what was written.
    """
    path = resolve(name, trust_remote_code=options.trust_remote_code)
    known = model_fingerprint(path, options)
    config = load_config(path, name, trust_remote_code=options.trust_remote_code)
    adapter = adapter or find_adapter(config.model_type)
    if is_gguf(path):
        model, processor = load_gguf(str(path), config, options)
    else:
        model, processor = _load_folder(adapter, str(path), options)
    return wrap_model(adapter, model, processor, path=name, fingerprint=known)


def _load_folder(adapter: Adapter, path: str, options: LoadOptions) -> tuple[nn.Module, Any]:
    require_dtype(path, options)
    shared = {"trust_remote_code": options.trust_remote_code, "local_files_only": True}
    placing = (
        placement_arguments(adapter.model_class, AutoConfig.from_pretrained(path, **shared), options)
        if is_placed(options)
        else {}
    )
    try:
        processor = adapter.processor_class.from_pretrained(path, **shared)
        # Pickled weights could run code, so safetensors is the only format that is read.
        model, report = adapter.model_class.from_pretrained(
            path, dtype=options.dtype, use_safetensors=True, output_loading_info=True, **placing, **shared
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise AdapterError(f"{path}: transformers cannot load it: {one_line(error)}") from None
    return finish_loading(model, report, path=path, options=options), processor


def load_config(path: Path, name: str, *, trust_remote_code: bool = False) -> Any:
    """Return the transformers config of a model folder or GGUF file; `name` stands in errors."""
    load_family(_model_type(path, name))
    try:
        return AutoConfig.from_pretrained(
            **location(path), trust_remote_code=trust_remote_code, local_files_only=True
        )
    except UNREADABLE as error:
        raise AdapterError(
            f"{name}: {'it' if is_gguf(path) else 'config.json'} cannot be read: {one_line(error)}"
        ) from None


def _model_type(path: Path, name: str) -> str:
    """Return the family that config.json names, empty where there is no such file, as for a tokenizer."""
    if not (path / "config.json").is_file():
        return ""
    try:
        values = read_json(path / "config.json")
    except (OSError, ValueError) as error:
        raise AdapterError(f"{name}: config.json cannot be read: {one_line(error)}") from None
    model_type = values.get("model_type", "") if isinstance(values, dict) else None
    if not isinstance(model_type, str):
        raise AdapterError(f"{name}: config.json: expected a mapping whose `model_type` names a family")
    return model_type


def wrap_model(
    adapter: Adapter, model: nn.Module, processor: Any, *, path: str, fingerprint: str | None = None
) -> LoadedModel:
    """Return a model in memory with its tokenizer and stop ids; the default fingerprint is of its weights."""
    tokenizer = getattr(processor, "tokenizer", processor)
    return LoadedModel(
        adapter=adapter,
        model=model,
        processor=processor,
        tokenizer=tokenizer,
        path=path,
        fingerprint=fingerprint or weights_fingerprint(model),
        stop_ids=find_stop_ids(getattr(model, "generation_config", None), processor),
        image_token_ids=find_image_token_ids(getattr(model, "config", None)),
    )


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of the model `name`, which needs no weights."""
    path = resolve(name, weights=False, trust_remote_code=trust_remote_code)
    load_family(_model_type(path, name))
    try:
        return AutoTokenizer.from_pretrained(
            **location(path), local_files_only=True, trust_remote_code=trust_remote_code
        )
    except UNREADABLE as error:
        raise AdapterError(f"{name}: no tokenizer can be loaded: {one_line(error)}") from None
