"""A model from its folder, hub id or GGUF file into memory. Models are built from parts in students/."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from vlm_distill.adapters.adapter import Adapter, LoadedModel, LoadOptions
from vlm_distill.adapters.catalog import find_adapter, load_family
from vlm_distill.adapters.causal_lm import CAUSAL_LM
from vlm_distill.adapters.chat import find_image_token_ids, find_stop_ids
from vlm_distill.adapters.foreign import REMEDY, blaming
from vlm_distill.errors import AdapterError, one_line, shown
from vlm_distill.files import read_json
from vlm_distill.models.fingerprint import locate, weights_fingerprint
from vlm_distill.models.gguf import is_gguf, load_gguf, location
from vlm_distill.models.names import SETTINGS_FILES, resolve, weight_files
from vlm_distill.models.parts import find_parts
from vlm_distill.models.placement import (
    finish_loading,
    is_placed,
    meta_model,
    placement_arguments,
    require_dtype,
)

TRUST = (
    "it brings code of its own, which runs only where you trust it: `trust_remote_code: true` beside `model` "
    "in a config, `--trust-remote-code` for eval and export, and nowhere for the parts of a build"
)
# Parts of a config for what is not text.
_SENSES = re.compile("vision|image|video|audio|speech")
# Layers are built as modules and ids are listed, even without weights; no model has a tenth of these.
MOST = {"num_hidden_layers": 1000, "vocab_size": 2**24}
# Of towers too, under the names that families have for them.
_LAYERS = re.compile(r"(?:.*_)?(?:layers?|depth|blocks)")


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
    path, known = locate(name, options)
    config = load_config(path, name, trust_remote_code=options.trust_remote_code)
    adapter = adapter or find_adapter(config.model_type)
    remedy = remedy_for(path, trust_remote_code=options.trust_remote_code)
    with blaming(f"{path}: transformers cannot load it", remedy=remedy):
        if is_gguf(path):
            model, processor = load_gguf(str(path), config, options)
        else:
            model, processor = _load_folder(adapter, str(path), options)
    return wrap_model(adapter, model, processor, path=name, fingerprint=known)


def _load_folder(adapter: Adapter, path: str, options: LoadOptions) -> tuple[nn.Module, Any]:
    require_dtype(path, options)
    shared = {"trust_remote_code": options.trust_remote_code, "local_files_only": True}
    config = AutoConfig.from_pretrained(path, **shared)
    described = meta_model(adapter.model_class, config, trust_remote_code=options.trust_remote_code)
    require_as_many_numbers(described, Path(path))
    placing = placement_arguments(adapter.model_class, config, options) if is_placed(options) else {}
    processor = adapter.processor_class.from_pretrained(path, **shared)
    # Pickled weights could run code, so safetensors is the only format that is read.
    model, report = adapter.model_class.from_pretrained(
        path, dtype=options.dtype, use_safetensors=True, output_loading_info=True, **placing, **shared
    )
    return finish_loading(model, report, path=path, options=options), processor


def require_as_many_numbers(model: nn.Module, folder: Path) -> None:
    """Refuse a config of far more weights than there are: memory is taken for what it describes."""
    loaded: Any = model
    if getattr(loaded.config, "quantization_config", None) is not None:
        return  # Several numbers lie in one.
    described = sum(parameter.numel() for parameter in model.parameters())
    stored = sum(_count(file) for file in weight_files(folder))
    if described > 2 * stored:
        raise AdapterError(
            f"{folder}: its config describes {described:,} weights, but its files hold {stored:,}; {REMEDY}"
        )


def _count(file: Path) -> int:
    with safe_open(file, framework="pt") as handle:
        return sum(math.prod(handle.get_slice(name).get_shape()) for name in handle.keys())  # noqa: SIM118


def load_config(path: Path, name: str, *, trust_remote_code: bool = False) -> Any:
    """Return the transformers config of a model folder or GGUF file; `name` stands in errors."""
    load_family(_model_type(path, name))
    what = f"{name}: {'it' if is_gguf(path) else 'config.json'} cannot be read"
    with blaming(what, remedy=remedy_for(path, trust_remote_code=trust_remote_code)):
        config = AutoConfig.from_pretrained(
            **location(path), trust_remote_code=trust_remote_code, local_files_only=True
        )
        for key, most in MOST.items():
            value = getattr(config.get_text_config(), key, None)
            if value is not None and not 0 < value <= most:
                raise AdapterError(
                    f"{name}: config.json: expected 1 to {most:,} {key}, got {value}; {REMEDY}"
                )
    _require_own_files(config, name, trust_remote_code=trust_remote_code)
    _require_text_alone(config, name)
    return config


def _require_text_alone(config: Any, name: str) -> None:
    """Refuse to take for a text model what transformers has as one, and what reads pictures or sounds too."""
    values = vars(config).items()
    others = [key for key, value in values if _SENSES.search(key) and isinstance(value, PreTrainedConfig)]
    if others and find_adapter(config.model_type) is CAUSAL_LM:
        raise AdapterError(
            f"{name}: model type {config.model_type!r} has {' and '.join(others)}, but no class of "
            "image-text models in transformers: what it reads beside text is not supported; choose another "
            "model, or an adapter of a package for it"
        )


def remedy_for(path: Path, *, trust_remote_code: bool) -> str:
    """Return what to do about a model that cannot be loaded."""
    files = [path / name for name in SETTINGS_FILES if name.endswith("config.json")]
    if trust_remote_code or not any(_brings_code(file) for file in files):
        return REMEDY
    return f"{TRUST}; else {REMEDY}"


def _brings_code(path: Path) -> bool:
    try:
        return path.is_file() and "auto_map" in read_json(path)
    except (OSError, ValueError, TypeError):
        return False


def _require_own_files(config: Any, name: str, *, trust_remote_code: bool) -> None:
    """Refuse a config by which transformers loads other files than those that are known and hashed."""
    other = getattr(config, "transformers_weights", None)
    if other is not None:
        raise AdapterError(
            f"{name}: config.json: `transformers_weights` names other weights, {shown(other)}; "
            "rename them to model.safetensors and take the key out"
        )
    parts = [config, *(getattr(config, key, None) for key in getattr(config, "sub_configs", ()))]
    kernels = [str(getattr(part, "_attn_implementation", None)) for part in parts]
    # Such a name is a repository, from which compiled code is fetched and run.
    if not trust_remote_code and (foreign := [kernel for kernel in kernels if "/" in kernel]):
        raise AdapterError(
            f"{name}: config.json: `attn_implementation` asks for code from the hub, {shown(foreign[0])}; "
            "take the key out"
        )


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
    _require_few_layers(values, f"{name}: config.json")
    return model_type


def _require_few_layers(values: dict[str, Any], where: str) -> None:
    """Refuse what transformers would count up to while it reads a config, before it does."""
    most = MOST["num_hidden_layers"]
    for key, value in values.items():
        if isinstance(value, dict):
            _require_few_layers(value, f"{where}: {shown(key)}")
        elif _LAYERS.fullmatch(key) and isinstance(value, (int, float)) and value > most:
            raise AdapterError(f"{where}: expected at most {most:,} {key}, got {value}; {REMEDY}")


def wrap_model(
    adapter: Adapter, model: nn.Module, processor: Any, *, path: str, fingerprint: str | None = None
) -> LoadedModel:
    """Return a model in memory with its tokenizer and stop ids; the default fingerprint is of its weights.

    Raises:
        AdapterError: its prompts are read by an encoder, so that no response continues them.
    """
    config = getattr(model, "config", None)
    # The decoder of such a pair alone says False, but its family does not.
    if getattr(config, "is_encoder_decoder", False) or getattr(type(config), "is_encoder_decoder", False):
        raise AdapterError(
            f"{path}: an encoder reads its prompts and a decoder answers; "
            "choose a model whose answers continue their prompts"
        )
    tokenizer = getattr(processor, "tokenizer", processor)
    with blaming(f"{path}: its stop ids and image tokens cannot be read"):
        stop_ids = find_stop_ids(getattr(model, "generation_config", None), processor)
        image_token_ids = find_image_token_ids(config, processor)
    return LoadedModel(
        adapter=adapter if adapter.parts else replace(adapter, parts=find_parts(model)),
        model=model,
        processor=processor,
        tokenizer=tokenizer,
        path=path,
        fingerprint=fingerprint or weights_fingerprint(model),
        stop_ids=stop_ids,
        image_token_ids=image_token_ids,
    )


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of the model `name`, which needs no weights."""
    path = resolve(name, weights=False, trust_remote_code=trust_remote_code)
    load_family(_model_type(path, name))
    remedy = remedy_for(path, trust_remote_code=trust_remote_code)
    with blaming(f"{name}: no tokenizer can be loaded", remedy=remedy):
        return AutoTokenizer.from_pretrained(
            **location(path), local_files_only=True, trust_remote_code=trust_remote_code
        )
