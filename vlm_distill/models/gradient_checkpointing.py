"""Gradient checkpointing: layers keep no activations and are forwarded again in the backward pass."""

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
