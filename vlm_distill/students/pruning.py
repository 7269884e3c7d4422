"""A student that is its teacher with fewer layers, initialised from the teacher's own weights.

DistilBERT (arXiv:1910.01108, Sec. 3) starts from every other layer; here any number of layers is spread
evenly, or chosen one by one. Training is what makes the result useful.
"""

import copy
from collections.abc import Iterator, Mapping
from itertools import chain, pairwise
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.adapters.foreign import blaming
from vlm_distill.config import Record
from vlm_distill.errors import AdapterError
from vlm_distill.models.layers import find_layers
from vlm_distill.models.load import load_model, wrap_model
from vlm_distill.models.placement import has_plain_weights
from vlm_distill.models.skeleton import SKELETON

WHERE = "student.shrink.layers"


class ShrinkConfig(Record):
    """How many layers of the teacher's language model the student keeps, or which (from 0, ascending)."""

    layers: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=0)], ...]


def shrink_student(config: ShrinkConfig, *, teacher: LoadedModel) -> LoadedModel:
    """Return the teacher with the given layers only, its weights copied, in float32 on the CPU.

    Embeddings, norms, output layer, vision tower and projector are all kept. From a teacher without weights
    (`load_skeleton`) the student is a skeleton too. Of a teacher that is quantised or offloaded the weights
    are read once more from its files.

    Raises:
        AdapterError: layers that the teacher lacks, or a family in which layers cannot be left out.
    """
    is_skeleton = teacher.fingerprint == SKELETON
    is_readable = is_skeleton or has_plain_weights(teacher.model)
    source: Any = teacher.model if is_readable else load_model(teacher.path, LoadOptions(dtype="auto")).model
    name = find_layers(source)
    num_layers = len(source.get_submodule(name))
    kept = chosen_layers(config.layers, num_layers)
    student = _build(source, num_layers, kept)
    _require_same_layers(source, student, name, kept)
    if not is_skeleton:
        _copy_weights(source, student, name, kept)
    student.generation_config = copy.deepcopy(source.generation_config)
    return wrap_model(
        teacher.adapter,
        student.eval(),
        teacher.processor,
        path="shrunk",
        fingerprint=SKELETON if is_skeleton else None,
    )


def chosen_layers(layers: int | tuple[int, ...], num_layers: int) -> list[int]:
    """Return the layers that are kept, in ascending order.

    Of L layers, k are spread evenly: layer i of the student is layer round(i (L - 1) / (k - 1)) of the
    teacher (halves are rounded up), so the first and the last are among them; k = 1 keeps the first.
    """
    if isinstance(layers, int):
        if layers > num_layers:
            raise AdapterError(f"{WHERE}: expected at most the {num_layers} of the teacher, got {layers}")
        gaps = max(1, layers - 1)
        return [(2 * i * (num_layers - 1) + gaps) // (2 * gaps) for i in range(layers)]
    if not layers or any(first >= second for first, second in pairwise(layers)):
        raise AdapterError(f"{WHERE}: expected different layers in ascending order, got {list(layers)}")
    if layers[-1] >= num_layers:
        raise AdapterError(f"{WHERE}: the teacher has layers 0..{num_layers - 1}, got {layers[-1]}")
    return list(layers)


def _build(source: Any, num_layers: int, kept: list[int]) -> Any:
    """Return the smaller architecture without weights."""
    config = copy.deepcopy(source.config)
    text = config.get_text_config()
    # layer_types, no_rope_layers and the like hold one entry per layer.
    per_layer = {
        key: value
        for key, value in text.to_dict().items()
        if "layer" in key and isinstance(value, (list, tuple)) and len(value) == num_layers
    }
    config.dtype = text.dtype = torch.float32
    text.num_hidden_layers = len(kept)
    for key, value in per_layer.items():
        setattr(text, key, [value[index] for index in kept])
    remedy = "choose another number of layers"
    with blaming(f"{WHERE}: {config.model_type!r} cannot have {len(kept)} layers", remedy=remedy):
        settings = config.to_dict()
        # Some families compute one setting from another whenever their config is read.
        if type(config).from_dict(settings).to_dict() != settings:
            raise ValueError("its config does not come back as it was saved")
        with torch.device("meta"):
            return type(source)(config)


def _require_same_layers(source: Any, student: Any, name: str, kept: list[int]) -> None:
    """Refuse families whose layers differ by their number in the stack: a layer would change its meaning."""
    moved = dict(zip(kept, range(len(kept)), strict=True))
    theirs = {
        new: value.shape for key, value in _tensors(source) if (new := _renamed(key, name, moved)) is not None
    }
    ours = {key: value.shape for key, value in _tensors(student)}
    differing = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
    for old, place in moved.items():
        pair = [model.get_submodule(f"{name}.{at}") for model, at in ((source, old), (student, place))]
        first, second = (_behaviour(layer) for layer in pair)
        differing += sorted(
            f"{name}.{place}.{key}"
            for key in first.keys() | second.keys()
            if first.get(key) != second.get(key)
        )
    if differing:
        raise AdapterError(
            f"{WHERE}: layers of {source.config.model_type!r} differ by their place, so leaving some out "
            f"would change others (first: {differing[0]}); keep layers that repeat its pattern"
        )


def _behaviour(layer: nn.Module) -> dict[str, Any]:
    """Return the plain settings of a layer and its submodules, such as a window, without its number."""
    return {
        f"{path}.{key}": value
        for path, module in layer.named_modules()
        for key, value in {**vars(module), "class": type(module).__name__}.items()
        if isinstance(value, (bool, int, float, str))
        and not key.startswith("_")
        and not key.endswith(("idx", "_id", "index"))
        and key != "training"
    }


def _copy_weights(source: nn.Module, student: Any, name: str, kept: list[int]) -> None:
    """Give the student copies of the weights and buffers of its layers; tied ones stay tied."""
    moved = dict(zip(kept, range(len(kept)), strict=True))
    values = {}
    for key, value in _tensors(source):
        new = _renamed(key, name, moved)
        if new is not None:
            dtype = torch.float32 if value.is_floating_point() else value.dtype
            values[new] = value.detach().to("cpu", dtype, copy=True)
    saved = set(student.state_dict())
    student.load_state_dict({key: values[key] for key in saved}, assign=True)
    for key, _ in list(student.named_buffers()):
        if key not in saved:
            owner, _, leaf = key.rpartition(".")
            student.get_submodule(owner).register_buffer(leaf, values[key], persistent=False)
    student.tie_weights()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))


def _renamed(key: str, name: str, moved: Mapping[int, int]) -> str | None:
    """Return the name of a tensor in the student, None where it belongs to a layer that is left out."""
    if not key.startswith(f"{name}."):
        return key
    number, _, rest = key.removeprefix(f"{name}.").partition(".")
    return f"{name}.{moved[int(number)]}.{rest}" if int(number) in moved else None
