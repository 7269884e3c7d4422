"""Where the decoder and its layers are in a model: what shrinking cuts, offloading moves and masks reach."""

from typing import Any

from torch import nn

from vlm_distill.errors import AdapterError


def decoder_of(model: nn.Module) -> Any:
    """Return the (inner) language model without its output layer."""
    loaded: Any = model
    return loaded.get_decoder() if hasattr(loaded, "get_decoder") else loaded.base_model


def find_layers(model: nn.Module) -> str:
    """Return the name of the module list that holds the layers of the (inner) language model.

    Raises:
        AdapterError: the family keeps its layers in no such list, or in several.
    """
    loaded: Any = model
    count = int(loaded.config.get_text_config().num_hidden_layers)
    decoder = decoder_of(model)
    prefix = next((name for name, module in model.named_modules() if module is decoder), None)
    found = [
        f"{prefix}.{name}".lstrip(".")
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    # Experts or heads inside a layer may happen to be as many.
    outer = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    if prefix is None or len(outer) != 1:
        raise AdapterError(
            f"model type {loaded.config.model_type!r}: expected one list of {count} decoder layers, "
            f"found {', '.join(outer) or 'none'}; its layers cannot be told apart from the rest"
        )
    return outer[0]
