"""The output layer of a model as plain tensors, with what its family does to the logits behind it."""

from dataclasses import replace
from typing import Any

from torch import nn

from vlm_distill.batches import Head

# Gemma 2 and later, RecurrentGemma, xLSTM.
SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def output_layer(model: nn.Module) -> nn.Module:
    """Return the module whose weight turns hidden states into logits.

    A class around a whole causal language model leaves it there.
    """
    loaded: Any = model
    layer: nn.Module | None = loaded.get_output_embeddings()
    return output_layer(loaded.get_decoder()) if layer is None else layer


def output_head(model: nn.Module) -> Head:
    """Return the live output layer with the scale and soft cap that its family applies to logits."""
    loaded: Any = model
    config = loaded.config.get_text_config()
    scale = 1.0
    # Cohere multiplies by logit_scale, Falcon-H1 by lm_head_multiplier, Granite divides by logits_scaling.
    scale *= getattr(config, "logit_scale", None) or 1.0
    scale *= getattr(config, "lm_head_multiplier", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    # Muse multiplies by output_multiplier, Inkling divides by logits_mup_width_multiplier.
    scale *= getattr(config, "output_multiplier", None) or 1.0
    scale /= getattr(config, "logits_mup_width_multiplier", None) or 1.0
    soft_cap = next((cap for name in SOFT_CAPS if (cap := getattr(config, name, None)) is not None), None)
    return replace(
        plain_head(model), scale=float(scale), soft_cap=None if soft_cap is None else float(soft_cap)
    )


def plain_head(model: nn.Module) -> Head:
    """Return the live output layer of a model whose class leaves out what its config says of logits."""
    layer: Any = output_layer(model)
    return Head(weight=layer.weight, bias=getattr(layer, "bias", None))
