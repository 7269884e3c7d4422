"""The known model families, those of installed packages among them."""

from importlib.metadata import entry_points

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from vlm_distill.adapters.adapter import Adapter
from vlm_distill.adapters.causal_lm import CAUSAL_LM
from vlm_distill.adapters.hyperclovax import HYPERCLOVAX
from vlm_distill.adapters.llava import LLAVA
from vlm_distill.adapters.qwen_vl import QWEN_VL
from vlm_distill.errors import AdapterError, did_you_mean

ENTRY_POINTS = "vlm_distill.adapters"
ADAPTERS = {adapter.name: adapter for adapter in (CAUSAL_LM, HYPERCLOVAX, LLAVA, QWEN_VL)}


def find_adapter(model_type: str) -> Adapter:
    """Return the adapter of a `model_type`; installed packages add families through the entry-point group.

    Any causal language model of transformers gets the generic text adapter. An image-text family must be
    known, because position ids and extra tensors differ between them and a wrong guess would train without an
    error.
    """
    installed: list[Adapter] = [point.load() for point in entry_points(group=ENTRY_POINTS)]
    by_type = {
        known: adapter for adapter in [*ADAPTERS.values(), *installed] for known in adapter.model_types
    }
    if model_type in by_type:
        return by_type[model_type]
    if model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise AdapterError(
            f"model type {model_type!r}: an image-text family without an adapter; "
            f"write one for the entry-point group {ENTRY_POINTS!r}; {did_you_mean(model_type, by_type)}"
        )
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return CAUSAL_LM
    raise AdapterError(
        f"model type {model_type!r}: not a text or image-text model; {did_you_mean(model_type, by_type)}"
    )
