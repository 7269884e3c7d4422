"""HyperCLOVA X, with and without images: it multiplies its logits by the key by which Granite divides."""

from dataclasses import replace
from typing import Any

from torch import nn

from vlm_distill.adapters import head
from vlm_distill.adapters.adapter import Adapter
from vlm_distill.adapters.causal_lm import CAUSAL_LM
from vlm_distill.batches import Head


def output_head(model: nn.Module) -> Head:
    config: Any = model.config
    return replace(head.output_head(model), scale=float(config.get_text_config().logits_scaling))


HYPERCLOVAX = replace(CAUSAL_LM, name="hyperclovax", model_types=("hyperclovax",), head=output_head)
HYPERCLOVAX_VISION = Adapter(
    name="hyperclovax_vision", model_types=("hyperclovax_vision_v2",), head=output_head
)
