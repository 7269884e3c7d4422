"""Gradient checkpointing: layers keep no activations and are forwarded again in the backward pass."""

from collections.abc import Callable
from typing import Any

from torch import nn

from vlm_distill.errors import AdapterError


def recompute_activations(loaded_model: nn.Module) -> None:
    """Switch gradient checkpointing on, in place. It acts in training mode only.

    Raises:
        AdapterError: this class of models cannot do it.
    """
    model: Any = loaded_model
    # transformers 5.23 gave the switch another name and warns of the old one.
    switch = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        switch({"use_reentrant": False})
    except ValueError:
        raise AdapterError(
            f"train.gradient_checkpointing: {type(model).__name__} does not support it; set it to false"
        ) from None
    # transformers makes all embeddings require gradients, which only the reentrant variant needs; a frozen
    # vision tower would be forwarded twice and backward once.
    model.disable_input_require_grads()


def rest_inside(layer: nn.Module) -> None:
    """Let a layer that recomputes its activations run in eval mode, in place.

    It stays in training mode around its forward, where transformers decides on the recomputation.
    """
    recompute: Callable[..., Any] = layer._gradient_checkpointing_func  # type: ignore[assignment]

    def resting(forward: Callable[..., Any], *inputs: Any) -> Any:
        def in_eval_mode(*inputs: Any) -> Any:
            layer.training = False
            try:
                return forward(*inputs)
            finally:
                layer.training = True

        return recompute(in_eval_mode, *inputs)

    layer._gradient_checkpointing_func = resting  # type: ignore[assignment]


def keep_activations(loaded_model: nn.Module) -> None:
    """Switch gradient checkpointing off, in place."""
    model: Any = loaded_model
    switch = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    switch()


def cache_disabled(model: nn.Module) -> bool:
    """Return whether the model forwards without its key-value cache, of which transformers logs only a line.

    What reads a cache (a shared prefix, generation) would then see the last tokens alone.
    """
    return model.training and any(
        getattr(module, "gradient_checkpointing", False) for module in model.modules()
    )
