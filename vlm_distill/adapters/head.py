"""The output layer of a model as plain tensors, with what its family does to the logits behind it."""

from typing import Any

from torch import nn

from vlm_distill.batches import Head


def output_head(model: nn.Module) -> Head:
    """Return the live output layer with the scale and soft cap that its family applies to logits."""
    loaded: Any = model
    layer = loaded.get_output_embeddings()
    config = loaded.config.get_text_config()
    scale = 1.0
    # Cohere multiplies by logit_scale, Falcon-H1 by lm_head_multiplier, Granite divides by logits_scaling.
    scale *= getattr(config, "logit_scale", None) or 1.0
    scale *= getattr(config, "lm_head_multiplier", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    soft_cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2 and later
    return Head(
        weight=layer.weight,
        bias=getattr(layer, "bias", None),
        scale=float(scale),
        soft_cap=None if soft_cap is None else float(soft_cap),
    )


def plain_head(model: nn.Module) -> Head:
    """Return the live output layer of a model whose class leaves out what its config says of logits."""
    loaded: Any = model
    layer = loaded.get_output_embeddings()
    return Head(weight=layer.weight, bias=getattr(layer, "bias", None))
