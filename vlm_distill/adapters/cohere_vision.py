"""Aya Vision and Command A Vision, around a text model whose scale of logits their classes leave out."""

from vlm_distill.adapters.adapter import Adapter
from vlm_distill.adapters.head import plain_head

COHERE_VISION = Adapter(name="cohere_vision", model_types=("aya_vision", "cohere2_vision"), head=plain_head)
