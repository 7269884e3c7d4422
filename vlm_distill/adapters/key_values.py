"""The key-value cache by its name: `cache` since transformers 5.24, before that `past_key_values`."""

import inspect
from typing import Any

from torch import nn
from transformers import Cache


def cache_argument(model: nn.Module, cache: Cache | None) -> dict[str, Cache | None]:
    """Return `cache` as the keyword argument that the model's forward knows it by."""
    names = inspect.signature(model.forward).parameters
    return {"cache" if "cache" in names else "past_key_values": cache}


def cache_of(output: Any) -> Any:
    """Return the cache that a forward returned; recurrent models have classes of their own."""
    # The new output answers to the old name too, with a warning.
    return output["cache" if "cache" in output else "past_key_values"]
