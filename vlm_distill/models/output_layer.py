"""The output layer of a model without its body, for training on what the body said once (a teacher cache).

`light_model` gives a model in which only the output layer has weights: config, tokenizer, processor, stop ids
and fingerprint are those of the whole model, and `head` works as ever.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.adapters.foreign import blaming
from vlm_distill.adapters.head import output_layer
from vlm_distill.errors import AdapterError
from vlm_distill.models.fingerprint import locate
from vlm_distill.models.gguf import is_gguf
from vlm_distill.models.load import load_model
from vlm_distill.models.names import weight_files
from vlm_distill.models.placement import require_dtype
from vlm_distill.models.skeleton import load_skeleton


def light_model(name: str, options: LoadOptions) -> LoadedModel:
    """Return the model `name` with weights in its output layer alone; the rest is on the meta device.

    Of a GGUF file the whole model is read into the memory of the host and let go.

    Raises:
        AdapterError: see `load_model`, or the files have no output layer that fits the config.
    """
    require_dtype(name, options)
    path, known = locate(name, options)
    light = load_skeleton(name, trust_remote_code=options.trust_remote_code)
    if is_gguf(path):
        whole = load_model(name, LoadOptions(dtype=options.dtype))
        read = _tensors(whole.model)
    else:
        with blaming(f"{path}: its output layer cannot be read"):
            read = read_head(path, light.model)
    dtype = _dtype(light.model, options.dtype, next(iter(read.values())).dtype)
    layer: Any = output_layer(light.model.to(dtype))
    for part, value in read.items():
        setattr(layer, part, nn.Parameter(value.to(options.device, dtype), requires_grad=False))
    return replace(light, fingerprint=known)


def require_same_head(light: LoadedModel, whole: LoadedModel) -> None:
    """Refuse an output layer that was read from the files in another way than the model loads it.

    Raises:
        AdapterError: the two differ.
    """
    ours, theirs = _tensors(light.model), _tensors(whole.model)
    same = ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[part].to(value.device)) for part, value in ours.items()
    )
    if not same:
        raise AdapterError(
            f"{light.path}: its output layer as it stands in the files is not the one that the loaded model "
            "has; train without `cache`"
        )


def read_head(folder: Path, model: nn.Module) -> dict[str, Tensor]:
    """Return weight and, where there is one, bias of the output layer from the safetensors files of a folder.

    Only these tensors are read, by the names that transformers gives to what is in the files. A model that
    ties its output layer to its embeddings may store those alone.

    Raises:
        AdapterError: no tensor of the files, or several, are the output layer.
    """
    files = _files(folder)
    names = _names_in_memory(model, files)
    layer = output_layer(model)
    found: dict[str, Tensor] = {}
    for part, parameter in layer.named_parameters(recurse=False):
        tied = [name for name, one in model.named_parameters(remove_duplicate=False) if one is parameter]
        # Its own name before those of what it is tied to.
        wanted = list(dict.fromkeys([_name_of(model, layer, part), *tied]))
        named = ([key for key in files if names[key] == name] for name in wanted)
        shape = tuple(parameter.shape)
        fitting = next((keys for keys in named if any(_shape(files[key], key) == shape for key in keys)), [])
        if not fitting:
            raise AdapterError(
                f"{folder}: expected the output layer as a tensor {' or '.join(wanted)} of shape "
                f"{list(shape)}, found none in its safetensors files"
            )
        if len(fitting) > 1:
            raise AdapterError(f"{folder}: several tensors could be the output layer: {', '.join(fitting)}")
        with safe_open(files[fitting[0]], framework="pt") as handle:
            found[part] = handle.get_tensor(fitting[0])
    return found


def _names_in_memory(model: nn.Module, keys: Iterable[str]) -> dict[str, str]:
    """Return the names that tensors of files have in a model, as transformers loads them."""
    loaded: Any = model
    changes = get_model_conversion_mapping(loaded)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    state = loaded.state_dict()
    return {
        key: rename_source_key(key, renamings, converters, loaded.base_model_prefix, state)[0] for key in keys
    }


def _files(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor."""
    found: dict[str, Path] = {}
    for path in weight_files(folder):
        with blaming(f"{path}: cannot be read"), safe_open(path, framework="pt") as handle:
            found |= dict.fromkeys(handle.keys(), path)
    return found


def _shape(path: Path, name: str) -> tuple[int, ...]:
    with safe_open(path, framework="pt") as handle:
        return tuple(handle.get_slice(name).get_shape())


def _name_of(model: nn.Module, module: nn.Module, part: str) -> str:
    prefix = next(name for name, one in model.named_modules() if one is module)
    return f"{prefix}.{part}" if prefix else part


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in output_layer(model).named_parameters(recurse=False)}


def _dtype(model: nn.Module, wanted: str, stored: torch.dtype) -> torch.dtype:
    """Return the dtype that a name means; "auto" is that of the config, else of the files."""
    loaded: Any = model
    known = loaded.config.dtype if wanted == "auto" else getattr(torch, wanted)
    return known if isinstance(known, torch.dtype) else stored
