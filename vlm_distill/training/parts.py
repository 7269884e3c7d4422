"""Which parameters learn, by component: all of them, none, or LoRA matrices beside frozen weights."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from vlm_distill.adapters.adapter import LoadedModel, Part
from vlm_distill.errors import AdapterError, few
from vlm_distill.models.gradient_checkpointing import rest_inside
from vlm_distill.models.lora import Lora, add_lora, part_of
from vlm_distill.progress import Log, silent
from vlm_distill.training.bypassed import bypassed_layers
from vlm_distill.training.config import Trainable, Treatment


def prepare_parts(
    loaded: LoadedModel, trainable: Trainable, *, seed: int, log: Log = silent
) -> list[nn.Parameter]:
    """Set which parameters learn and add LoRA matrices where they are wanted; return the learning ones.

    The log says how many linear layers get no matrices because the model reads their weights past them.

    A component that the family lacks (vision in a text model) can only be `full`, the default. Weights that
    belong to no component learn.

    Raises:
        AdapterError: nothing would learn, the family's record names parameters that the model does not have,
            or a component is to be frozen or to get LoRA that the family lacks.
    """
    parts = loaded.adapter.parts
    _require_parts(loaded)
    treatments = _treatments(trainable)
    for part, treatment in treatments.items():
        if part not in parts and treatment != "full":
            raise AdapterError(
                f"train.trainable.{part}: {loaded.path} has no such component to freeze or give LoRA; leave "
                f"the key out; known: {', '.join(parts)}"
            )
    for name, parameter in loaded.model.named_parameters():
        owner = part_of(name, parts)
        parameter.requires_grad_(owner is None or treatments[owner] == "full")
    lora = {part: treatment for part, treatment in treatments.items() if isinstance(treatment, Lora)}
    if lora:
        bypassed = bypassed_layers(loaded)
        names = [name for name, module in loaded.model.named_modules() if module in bypassed]
        if left_out := [name for name in names if part_of(f"{name}.", parts) in lora]:
            log(
                f"LoRA: {len(left_out)} linear layers get no matrices, for {loaded.path} reads their weights "
                f"past them: {few(left_out, most=4)}"
            )
        add_lora(loaded, lora, seed=seed, without=bypassed)
    learning = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
    if not learning:
        raise AdapterError(
            f"train.trainable: every component of {loaded.path} is frozen; let at least one learn"
        )
    return learning


def _treatments(trainable: Trainable) -> dict[str, Treatment]:
    return {part: getattr(trainable, part) for part in Trainable.model_fields}


def _require_parts(loaded: LoadedModel) -> None:
    """Refuse a record whose components are not in the model: what they name would learn although frozen."""
    # Tied weights by all their names.
    names = [name for name, _ in loaded.model.named_parameters(remove_duplicate=False)]
    for part, prefixes in loaded.adapter.parts.items():
        missing = [prefix for prefix in prefixes if not any(name.startswith(prefix) for name in names)]
        if part in Trainable.model_fields and prefixes and not missing:
            continue
        there = dict.fromkeys(".".join(name.split(".")[:2]) for name in names)
        expected = (
            f"parameters below {missing[0]!r}" if missing else f"one of {', '.join(Trainable.model_fields)}"
        )
        raise AdapterError(
            f"{loaded.path}: parts.{part} of family {loaded.adapter.name!r}: expected {expected}, found "
            f"{few([*there], most=8)}; correct the family's record"
        )


def training_mode(loaded: LoadedModel, trainable: Trainable) -> None:
    """Put the model into training mode, in place, and frozen components into eval mode.

    They drop nothing out and their running statistics stay, those of components with LoRA too. Gradient
    checkpointing is switched on before.
    """
    loaded.model.train()
    treatments = _treatments(trainable)
    for name, module in loaded.model.named_modules():
        part = part_of(f"{name}.", loaded.adapter.parts)
        treatment = "full" if part is None else treatments[part]
        # Layers recompute their activations in training mode only; behind a frozen tower no gradients come.
        recomputes = getattr(module, "gradient_checkpointing", False) and part != "vision"
        keeps_statistics = treatment != "full" and getattr(module, "track_running_stats", False)
        if (treatment == "frozen" and not recomputes) or keeps_statistics:
            module.training = False
        elif treatment == "frozen":
            rest_inside(module)


def moving_statistics(model: nn.Module) -> set[str]:
    """Return the names of the buffers that a model in training mode changes."""
    return {
        f"{name}.{buffer}"
        for name, module in model.named_modules()
        if module.training and getattr(module, "track_running_stats", False)
        for buffer, _ in module.named_buffers(recurse=False)
    }


def learning_parts(loaded: LoadedModel) -> set[Part | None]:
    """Return the components that have a learning parameter, None for what belongs to no component."""
    parameters = loaded.model.named_parameters()
    return {part_of(name, loaded.adapter.parts) for name, one in parameters if one.requires_grad}


def decay_groups(named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[Any]:
    """Return two parameter groups: matrices, which are decayed, and norms and biases, which are not."""
    learning = [parameter for _, parameter in named_parameters if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in learning if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in learning if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
