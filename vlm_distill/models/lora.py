"""LoRA and DoRA matrices beside the linear layers of a component, through peft, and merging them away.

The layers are exchanged inside the model: its class, its functions and the adapter record stay. Other
parameters (norms, embeddings, the output head, routers, expert weights that are no linear layer) get none.
"""

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from pydantic import Field
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from vlm_distill.adapters.adapter import LoadedModel, Part
from vlm_distill.config import Record
from vlm_distill.errors import AdapterError, did_you_mean
from vlm_distill.models.placement import is_quantised

NAME = "lora"


class Lora(Record):
    """Low-rank matrices beside frozen weights: W + alpha / rank * B A. LoRA, arXiv:2106.09685, Sec. 4.1.

    `dropout` acts on what goes into A. `dora` also learns the length of every row of the sum (DoRA,
    arXiv:2402.09353, Eq. 5).
    """

    kind: Literal["lora"] = "lora"
    rank: int = Field(default=16, ge=1, le=10**5)
    alpha: int = Field(default=32, ge=1, le=10**6)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    dora: bool = False


def part_of(name: str, parts: Mapping[Part, tuple[str, ...]]) -> Part | None:
    """Return the component that a parameter belongs to, None where no prefix fits; the longest prefix wins.

    A projector may lie inside the vision tower's prefix, as the merger of Qwen-VL does.
    """
    fitting = [
        (len(prefix), part)
        for part, prefixes in parts.items()
        for prefix in prefixes
        if name.startswith(prefix)
    ]
    return max(fitting)[1] if fitting else None


def add_lora(
    loaded: LoadedModel, lora: Mapping[Part, Lora], *, seed: int, without: Collection[nn.Module] = ()
) -> None:
    """Freeze the named components and put matrices beside all their linear layers, in place.

    The output head and the layers `without` get none. The matrices follow from `seed`, the model's outputs do
    not change yet, and torch's random numbers go on as if nothing had been drawn.

    Raises:
        AdapterError: the family has no such component, it has no linear layer, or the model is quantised.
    """
    if is_quantised(loaded.model):
        raise AdapterError(
            f"{loaded.path}: its weights are quantised, so LoRA could not be merged into them; "
            "start from the model's unquantised weights"
        )
    layers = {part: _linear_layers(loaded, part, without) for part in lora}
    for name, parameter in loaded.model.named_parameters():
        if part_of(name, loaded.adapter.parts) in lora:
            parameter.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        # Only the generator of the CPU, where peft draws; torch.manual_seed would reseed every device.
        torch.default_generator.manual_seed(seed)
        for part, settings in lora.items():
            _inject(loaded.model, layers[part], settings)


def _linear_layers(loaded: LoadedModel, part: Part, without: Collection[nn.Module]) -> dict[str, nn.Linear]:
    parts = loaded.adapter.parts
    if part not in parts:
        raise AdapterError(
            f"train.trainable.{part}: family {loaded.adapter.name!r} has no such component; "
            f"{did_you_mean(part, parts)}"
        )
    head = loaded.head.weight
    # Under all their names: families use a layer, or its weight, in several places.
    found = {
        name: module
        for name, module in loaded.model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Linear)
        # A class with a forward of its own returns something else, as routers of experts do.
        and type(module).forward is nn.Linear.forward
        # torch's own attention reads the weight of its output layer and never calls the layer.
        and not isinstance(module, NonDynamicallyQuantizableLinear)
        and module.weight is not head
        and module not in without
        and part_of(f"{name}.", parts) == part
    }
    if not found:
        raise AdapterError(
            f"train.trainable.{part}: expected linear layers for LoRA in {loaded.path}, found none below "
            f"{list(parts[part])}; choose `full` or `frozen`"
        )
    return found


def _inject(model: nn.Module, layers: Mapping[str, nn.Linear], settings: Lora) -> None:
    # peft freezes and marks the module that it is given, so it gets the layers alone and not the model.
    # A weight gets one pair of matrices wherever it stands, or they could not be merged into it.
    by_weight = {layer.weight: layer for layer in layers.values()}
    holder = nn.ModuleDict({str(number): layer for number, layer in enumerate(by_weight.values())})
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_dora=settings.dora,
        target_modules=r"\d+",
    )
    inject_adapter_in_model(config, holder, NAME)
    wrapped = dict(zip(by_weight, holder.values(), strict=True))
    for name, layer in layers.items():
        model.set_submodule(name, wrapped[layer.weight].train(model.training))


def merge_lora(loaded: LoadedModel) -> None:
    """Add the matrices to the weights and remove them, in place: the model is a plain one of its class again.

    The merged weights stay frozen. Without LoRA nothing happens.
    """
    wrapped = {
        name: module
        for name, module in loaded.model.named_modules(remove_duplicate=False)
        if isinstance(module, LoraLayer)
    }
    for module in {*wrapped.values()}:
        module.merge()
    for name, module in wrapped.items():
        loaded.model.set_submodule(name, module.get_base_layer())
