"""Which parameters learn: by component, all of them, none, or LoRA matrices beside frozen weights."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.errors import AdapterError
from vlm_distill.models.lora import Lora, add_lora, part_of
from vlm_distill.training.config import Trainable


def prepare_parts(loaded: LoadedModel, trainable: Trainable, *, seed: int) -> list[nn.Parameter]:
    """Set which parameters learn and add LoRA matrices where they are wanted; return the learning ones.

    A component that the family lacks (vision in a text model) is left out. Weights that
    belong to no component learn.

    Raises:
        AdapterError: nothing would learn.
    """
    treatments = {
        part: treatment
        for part, treatment in ((name, getattr(trainable, name)) for name in Trainable.model_fields)
        if part in loaded.adapter.parts
    }
    for name, parameter in loaded.model.named_parameters():
        part = part_of(name, loaded.adapter.parts)
        parameter.requires_grad_(part is None or treatments[part] == "full")
    lora = {part: treatment for part, treatment in treatments.items() if isinstance(treatment, Lora)}
    if lora:
        add_lora(loaded, lora, seed=seed)
    learning = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
    if not learning:
        raise AdapterError(
            f"train.trainable: every component of {loaded.path} is frozen; let at least one learn"
        )
    return learning


def decay_groups(named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[Any]:
    """Return two parameter groups: matrices, which are decayed, and norms and biases, which are not."""
    learning = [parameter for _, parameter in named_parameters if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in learning if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in learning if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
