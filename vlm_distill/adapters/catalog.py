"""The known model families, those of installed packages among them.

A package adds a family with one entry point of the group a model type, named like it: of an adapter for
several types the package writes several, and only the one that a model asks for is loaded.
"""

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from vlm_distill.adapters.adapter import Adapter
from vlm_distill.adapters.causal_lm import CAUSAL_LM
from vlm_distill.adapters.cohere_vision import COHERE_VISION
from vlm_distill.adapters.emu3 import EMU3
from vlm_distill.adapters.hunyuan_vl import HUNYUAN_VL
from vlm_distill.adapters.hyperclovax import HYPERCLOVAX, HYPERCLOVAX_VISION
from vlm_distill.adapters.llava import LLAVA
from vlm_distill.adapters.minicpm_v import MINICPM_V
from vlm_distill.adapters.mistral4 import MISTRAL4
from vlm_distill.adapters.mllama import MLLAMA
from vlm_distill.adapters.molmo2 import MOLMO2
from vlm_distill.adapters.perception_lm import PERCEPTION_LM
from vlm_distill.errors import AdapterError, PluginError, did_you_mean
from vlm_distill.plugins import find_part, installed_names

GROUP = "vlm_distill.adapters"
DEVIATING = (
    COHERE_VISION,
    EMU3,
    HUNYUAN_VL,
    HYPERCLOVAX,
    HYPERCLOVAX_VISION,
    LLAVA,
    MINICPM_V,
    MISTRAL4,
    MLLAMA,
    MOLMO2,
    PERCEPTION_LM,
)
BY_TYPE = {known: adapter for adapter in DEVIATING for known in adapter.model_types}
IMAGE_TEXT = Adapter(name="image_text", model_types=())
"""The generic path of image-text models, as causal_lm.py has that of text models."""


def find_adapter(model_type: str) -> Adapter:
    """Return the adapter of a `model_type`, that of an installed package before a built-in one.

    Any other causal language model or image-text model of transformers goes the generic path. Whether that
    serves its family is shown on the model (conformance/).
    """
    built_in = _built_in(model_type)
    found = _installed(model_type, built_in) or built_in
    if found is None:
        known = did_you_mean(model_type, [*BY_TYPE, *installed_names(GROUP)])
        raise AdapterError(f"model type {model_type!r}: not a text or image-text model; {known}")
    return found


def load_family(model_type: str) -> None:
    """Import what an installed package brings for a `model_type`, which may tell transformers of the type."""
    if model_type in installed_names(GROUP):
        find_adapter(model_type)


def _built_in(model_type: str) -> Adapter | None:
    if model_type in BY_TYPE:
        return BY_TYPE[model_type]
    if model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return IMAGE_TEXT
    return CAUSAL_LM if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else None


def _installed(model_type: str, built_in: Adapter | None) -> Adapter | None:
    part = find_part(GROUP, model_type, instead_of=built_in and built_in.name)
    if part is not None and not (isinstance(part.value, Adapter) and model_type in part.value.model_types):
        raise PluginError(f"{part.origin}: expected an Adapter with {model_type!r} among its model_types")
    return part.value if part else None
