"""Where the weights of a model live and in which form: arguments for `from_pretrained`, and what came out.

transformers does the work, through accelerate: a device map says which module lives where, and modules on the
CPU beside an accelerator travel to it for their forward.
"""

import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoQuantizationConfig

from vlm_distill.adapters.adapter import LoadOptions
from vlm_distill.adapters.foreign import blaming
from vlm_distill.adapters.head import output_layer
from vlm_distill.errors import AdapterError, did_you_mean, one_line
from vlm_distill.models.layers import find_layers

DTYPES = ("auto", "bfloat16", "float16", "float32")
# The module that a method needs, and the command that installs it.
LIBRARIES = {
    "bitsandbytes": ("bitsandbytes", "pip install bitsandbytes"),
    "bitsandbytes_4bit": ("bitsandbytes", "pip install bitsandbytes"),
    "bitsandbytes_8bit": ("bitsandbytes", "pip install bitsandbytes"),
    "torchao": ("torchao", "pip install torchao"),
    "quanto": ("optimum.quanto", "pip install optimum-quanto"),
    "hqq": ("hqq", "pip install hqq"),
}


def is_placed(options: LoadOptions) -> bool:
    """Return whether transformers puts the weights into place, and not a plain `model.to(device)`."""
    return options.placement != "same_device" or options.quantisation is not None


def placement_arguments(model_class: Any, config: Any, options: LoadOptions) -> dict[str, Any]:
    """Return what `from_pretrained` is given beyond dtype and path, nothing where weights just move later.

    Raises:
        AdapterError: the quantisation is unknown, lacks its library, or the layers cannot be found.
    """
    arguments: dict[str, Any] = {}
    if options.quantisation is not None:
        arguments["quantization_config"] = quantization_config(options.quantisation)
    if options.placement == "device_map":
        arguments["device_map"] = "auto"
    elif options.placement == "cpu_offload":
        skeleton = meta_model(model_class, config, trust_remote_code=options.trust_remote_code)
        arguments["device_map"] = offload_map(skeleton, options.device)
    elif options.quantisation is not None:
        # Quantised weights cannot always move afterwards.
        arguments["device_map"] = {"": options.device}
    return arguments


def meta_model(model_class: Any, config: Any, *, trust_remote_code: bool = False) -> nn.Module:
    """Return the model of a config in eval mode and on the meta device: nothing is read or allocated."""
    with torch.device("meta"):
        model: nn.Module = model_class.from_config(config, trust_remote_code=trust_remote_code)
    return model.eval()


def is_quantised(model: nn.Module) -> bool:
    """Return whether its weights are stored in fewer bits: not to be read, counted or changed as they are."""
    return getattr(model, "hf_quantizer", None) is not None


def has_plain_weights(model: nn.Module) -> bool:
    """Return whether all weights are there to be read, neither quantised nor offloaded."""
    return not is_quantised(model) and not any(parameter.is_meta for parameter in model.parameters())


def offload_map(model: nn.Module, device: str) -> dict[str, str]:
    """Return a device map with the decoder layers on the CPU and all other modules on `device`.

    Embeddings, output layer and vision tower stay on the device: the loss reads the output layer, and a
    decoder layer is the only module that a large model has many of.
    """
    layers = find_layers(model)
    found = {layers: "cpu"}
    inner = model
    path = ""
    for part in layers.split("."):
        for name, child in inner.named_children():
            if name != part and next(child.parameters(), next(child.buffers(), None)) is not None:
                found[f"{path}{name}"] = device
        found |= {f"{path}{name}": device for name, _ in inner.named_parameters(recurse=False)}
        found |= {f"{path}{name}": device for name, _ in inner.named_buffers(recurse=False)}
        inner = inner.get_submodule(part)
        path = f"{path}{part}."
    return found


def quantization_config(values: Mapping[str, Any]) -> Any:
    """Return the quantization config of transformers that a mapping with `quant_method` means."""
    if "quant_method" not in values:
        raise AdapterError("quantisation.quant_method: this key is required")
    method = values["quant_method"]
    known = [*AUTO_QUANTIZATION_CONFIG_MAPPING, "bitsandbytes"]
    if method not in known:
        raise AdapterError(
            f"quantisation.quant_method: unknown method {method!r}; {did_you_mean(str(method), known)}"
        )
    library, command = LIBRARIES.get(str(method), (None, ""))
    if library is not None and not _is_installed(library):
        raise AdapterError(
            f"quantisation: {method} needs the package {library}, which is not installed; run: {command}"
        )
    with blaming("quantisation: transformers refuses it", remedy="see its documentation of this method"):
        config = AutoQuantizationConfig.from_dict(dict(values))
    # Several of these configs drop what they do not know.
    options = inspect.signature(type(config).__init__).parameters.keys() - {"self", "kwargs"}
    for key in values.keys() - options - {"quant_method"}:
        raise AdapterError(f"quantisation.{key}: {method} has no such option; {did_you_mean(key, options)}")
    return config


def _is_installed(library: str) -> bool:
    parts = library.split(".")
    # find_spec of a submodule imports its parent, which may be absent.
    return all(importlib.util.find_spec(".".join(parts[: end + 1])) for end in range(len(parts)))


def require_readable(model: nn.Module, *, path: str) -> None:
    """Refuse a model whose embeddings or output layer the prompts and the loss cannot reach.

    Raises:
        AdapterError: embeddings or output layer were offloaded, or the output layer is no plain matrix.
    """
    loaded: Any = model
    head: Any = output_layer(model).weight
    if head.is_meta or loaded.get_input_embeddings().weight.is_meta:
        raise AdapterError(
            f"{path}: its embeddings or output layer did not fit on a device and were offloaded, but "
            "the loss reads them; use `placement: cpu_offload`, which keeps them there, or a smaller dtype"
        )
    if type(head) not in (nn.Parameter, torch.Tensor) or not head.is_floating_point():
        raise AdapterError(
            f"{path}: its output layer was quantised, but the loss needs a plain one; exclude lm_head in "
            "quantisation (`modules_to_not_convert: [lm_head]`, for bitsandbytes `llm_int8_skip_modules`)"
        )


def require_dtype(path: str, options: LoadOptions) -> None:
    if options.dtype not in DTYPES:
        raise AdapterError(f"{path}: unknown dtype {options.dtype!r}; {did_you_mean(options.dtype, DTYPES)}")


def finish_loading(
    model: nn.Module, report: Mapping[str, Any], *, path: str, options: LoadOptions
) -> nn.Module:
    """Return what `from_pretrained` gave, in eval mode and on its device, or say what is missing in it."""
    if missing := sorted(report["missing_keys"]):
        # transformers would go on with random values.
        raise AdapterError(f"{path}: {len(missing)} weights are missing in its files (first: {missing[:3]})")
    if is_placed(options):
        require_readable(model, path=path)
        return model.eval()
    return _on_device(model, options.device).eval()


def _on_device(model: nn.Module, device: str) -> nn.Module:
    try:
        return model.to(device)
    # A torch that was built without this kind of device asserts, or lacks the module for it.
    except (RuntimeError, AssertionError, ImportError) as error:
        raise AdapterError(f"device {device!r} cannot be used: {one_line(error)}") from None
