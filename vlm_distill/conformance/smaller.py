"""A model's config with fewer layers, narrow feed-forward parts and few experts, of which nothing is lost.

What layers differ in is seen on the modules of the model, which may be a skeleton: as many of the first ones
stay as show every kind. Widths and vocabulary stay, because the processor is made for them.
"""

import copy
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.errors import AdapterError
from vlm_distill.models.layers import decoder_of, find_layers

NARROW = 128
"""The most that a feed-forward part keeps of its inner width."""
_FEW_EXPERTS = 8
# Shorter than the prompts that are asked, so that windows count.
_WINDOW = 16
_WINDOWS = ("sliding_window", "attention_chunk_size")
# Under the names that families have for them.
_COUNTS = ("num_hidden_layers", "depth", "num_layers", "n_layers", "n_layer", "layers")
_INNER = re.compile(r".*intermediate_size(_mlp)?|ffn_dim|ffn_hidden_size|n_inner|encoder_ffn_dim")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_PLACES = re.compile(r".*(indexes|indices|feature_layers?|_layers|_layer_ids|_idx)")
_NUMBERS = (bool, int, float, str, tuple, type(None))


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """What is made smaller, and how that is said."""

    said: str
    layers: bool = False
    towers: bool = False
    widths: bool = False


CUTS = (
    Cut(said="few layers, narrow, with short windows", layers=True, towers=True, widths=True),
    Cut(said="few layers", layers=True, towers=True),
    Cut(said="few layers in its language model, the towers whole", layers=True),
    Cut(said="whole"),
)
"""In the order in which they are tried."""


def smaller_config(loaded: LoadedModel, cut: Cut) -> Any:
    """Return a copy of the model's config, made smaller as far as the cut says."""
    model: Any = loaded.model
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    language = _language_layers(model)
    if cut.layers and language:
        _shorten(text, len(language), num_layers_of_every_kind(language))
    towers = [getattr(config, name) for name in config.sub_configs if getattr(config, name, None) is not None]
    for tower in towers if cut.towers else ():
        if tower is not text:
            _shorten_tower(model, config, tower, language)
    for part in (config, text, *towers) if cut.widths else ():
        _narrow(part)
    return config


def num_layers_of_every_kind(layers: Sequence[nn.Module]) -> int:
    """Return how many of the first layers show every kind; two at least, or all."""
    kinds = _kinds(layers)
    first = {kind: place for place, kind in reversed(list(enumerate(kinds)))}
    last: int = max(first.values())
    return min(len(layers), max(2, 1 + last))


def _kinds(layers: Sequence[nn.Module]) -> list[Any]:
    """Return what tells each layer from another: modules, shapes, and settings other than its number."""
    found = [dict(_settings(layer)) for layer in layers]
    keys = dict.fromkeys(key for one in found for key in one)
    telling = [key for key in keys if not _counts([one[key] for one in found if key in one])]
    return [tuple(str(one.get(key)) for key in telling) for one in found]


def _counts(values: Sequence[Any]) -> bool:
    """Return whether a setting is a number of the layer, or grows or shrinks with it."""
    if not all(type(value) in (int, float) for value in values):
        return False
    steps = {after > before for before, after in itertools.pairwise(values) if after != before}
    return len({*values}) == len(values) > 1 and len(steps) == 1


def _settings(layer: nn.Module) -> Any:
    for name, module in layer.named_modules():
        yield f"{name}:", type(module).__name__
        for key, value in vars(module).items():
            if isinstance(value, _NUMBERS) and key != "training":
                yield f"{name}:{key}", value
        for key, parameter in module.named_parameters(recurse=False):
            yield f"{name}:{key}", tuple(parameter.shape)


def _language_layers(model: Any) -> list[nn.Module]:
    try:
        layers: Any = model.get_submodule(find_layers(model))
    except AdapterError:
        return []
    return list(layers)


def _shorten(config: Any, count: int, wanted: int) -> None:
    """Make `wanted` layers of `count`, and shorten or filter what the config says of each."""
    for name in _COUNTS:
        if getattr(config, name, None) == count:
            setattr(config, name, wanted)
    for name, value in list(vars(config).items()):
        is_said_of_each = isinstance(value, (list, tuple)) or "pattern" in name
        if is_said_of_each and isinstance(value, (list, tuple, str)) and len(value) == count:
            setattr(config, name, value[:wanted])
        elif _PLACES.fullmatch(name) and _are_places(value):
            setattr(config, name, type(value)(place for place in value if place < wanted))


def _shorten_tower(model: Any, config: Any, tower: Any, language: Sequence[nn.Module]) -> None:
    """Leave few layers of a tower, and read those by the settings that name some of its layers."""
    counts = {getattr(tower, name, None) for name in _COUNTS}
    known = {id(module) for module in decoder_of(model).modules()} if language else set()
    stacks = [
        list(module)
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) in counts and id(module) not in known
    ]
    if not stacks:
        return
    count = len(stacks[0])
    named = [
        (one, name) for one in (config, tower) for name, value in vars(one).items() if _names(name, value)
    ]
    listed = [len(getattr(one, name)) for one, name in named if _are_places(getattr(one, name))]
    # Listed layers move to the front, and one that is not listed stays behind them.
    wanted = max(listed) + 1 if listed else max(num_layers_of_every_kind(one) for one in stacks)
    wanted = min(count, wanted)
    for one, name in named:
        setattr(one, name, _moved(getattr(one, name), wanted))
    _shorten(tower, count, wanted)


def _names(name: str, value: Any) -> bool:
    is_one = name.endswith(("feature_layer", "layer_id")) and isinstance(value, int)
    return is_one or bool(_PLACES.fullmatch(name) and _are_places(value))


def _are_places(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(type(one) is int for one in value)


def _moved(value: Any, count: int) -> Any:
    """Return numbers of layers moved inside of `count`, in their order; as many as there were."""
    if isinstance(value, int):
        return max(value, -count) if value < 0 else min(value, count - 1)
    ranks = {place: rank for rank, place in enumerate(sorted({one for one in value if one >= 0}))}
    ends = {place: -1 - rank for rank, place in enumerate(sorted({one for one in value if one < 0})[::-1])}
    return type(value)(({**ranks, **ends})[one] for one in value)


def _narrow(config: Any) -> None:
    for name, value in list(vars(config).items()):
        if not _INNER.fullmatch(name):
            continue
        if isinstance(value, int):
            setattr(config, name, min(value, NARROW))
        elif _are_places(value):
            setattr(config, name, type(value)(min(one, NARROW) for one in value))
    for name in _WINDOWS:
        window = getattr(config, name, None)
        if isinstance(window, int):
            setattr(config, name, min(window, _WINDOW))
    chosen = max(1, getattr(config, "num_experts_per_tok", None) or getattr(config, "moe_k", None) or 1)
    groups, chosen_groups = (getattr(config, name, None) or 1 for name in ("n_group", "topk_group"))
    wanted = max(_FEW_EXPERTS, groups * max(2, -(-2 * chosen // chosen_groups)))
    for name in _EXPERTS:
        count = getattr(config, name, None)
        if isinstance(count, int):
            setattr(config, name, min(count, wanted))
