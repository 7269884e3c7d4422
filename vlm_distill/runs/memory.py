"""What a training stage needs in memory, from models without weights: an estimate that `check` prints.

Weights, gradients and AdamW moments are counted, activations follow a formula. Left out: what the device
library takes for itself, fragmentation, a checkpoint being written, and sampling between stages.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.adapters.head import output_layer
from vlm_distill.forward import shares_prefixes
from vlm_distill.losses.rows import BYTES_PER_LOGIT
from vlm_distill.models.layers import find_layers
from vlm_distill.training.config import Precision, TrainConfig
from vlm_distill.training.parts import prepare_parts

FLOAT32 = 4
# Under autocast norms and residuals stay in float32, linear layers and attention take half.
BYTES_PER_ACTIVATION: Mapping[Precision, int] = {"float32": 4, "bf16": 3, "fp16": 3}
UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatchShape:
    """The size of one micro-batch, per prompt: tokens of the prompt (images included) and its responses."""

    prompt: int
    response: int
    responses: int = 1
    image: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Bytes by what they hold: `device` where the student is trained, `host` what waits beside it."""

    device: Mapping[str, int]
    host: Mapping[str, int]
    about: str

    @property
    def total(self) -> int:
        """Bytes on the device of the student."""
        return sum(self.device.values())

    def lines(self) -> list[str]:
        """Return the estimate as lines of text."""
        parts = ", ".join(f"{name} {_readable(size)}" for name, size in self.device.items() if size)
        rows = [f"about {_readable(self.total)} to train {self.about}", parts]
        waiting = [f"{name} {_readable(size)}" for name, size in self.host.items() if size]
        return rows + [f"in the memory of the host: {text}" for text in waiting]


def estimate(
    student: LoadedModel,
    teacher: LoadedModel | None,
    *,
    train: TrainConfig,
    tokens: MicroBatchShape,
    options: LoadOptions = LoadOptions(),  # noqa: B008 (frozen)
) -> MemoryEstimate:
    """Return the peak memory of one process in a training step; both models may be skeletons.

    `options` say how the teacher is loaded; spread over several devices it is counted as if it were on one.
    """
    shadow = weightless(student)
    learning = sum(p.numel() for p in prepare_parts(shadow, train.trainable, seed=0))
    weights = sum(p.numel() for p in shadow.model.parameters())
    device = {
        "student weights": FLOAT32 * weights,
        "gradients": FLOAT32 * learning,
        "AdamW": 2 * FLOAT32 * learning,
    }
    if train.precision != "float32":
        # Autocast keeps a copy of every matrix for the backward pass.
        matrices = sum(p.numel() for p in shadow.model.parameters() if p.ndim > 1)
        device["weights in half precision"] = 2 * matrices
    # As the trainer will find it: recomputed activations drop the cache.
    shares = shares_prefixes(student, in_one_forward=train.gradient_checkpointing)
    prefixes = 1 if shares else tokens.responses
    size = train.prompts_per_forward(prefixes * tokens.prompt + tokens.responses * tokens.response)
    device["activations"] = _activations(shadow, train, tokens, size=size)
    rows = size * tokens.responses * tokens.response
    vocabulary = len(shadow.head.weight)
    device["loss"] = min(train.loss_byte_budget, rows * vocabulary * BYTES_PER_LOGIT)
    host: dict[str, int] = {}
    if teacher is not None:
        device["teacher weights"], host["teacher layers"] = teacher_bytes(teacher, options)
        # The teacher's forward is over when that of the student begins.
        forward = _teacher_activations(teacher, size, tokens, options)
        device["more for the teacher"] = max(0, forward - device["activations"] - device["loss"])
    batch = f"{size} x ({tokens.prompt} + {tokens.responses} x {tokens.response}) tokens"
    kept = "with" if train.gradient_checkpointing else "without"
    return MemoryEstimate(
        device=device, host=host, about=f"micro-batches of {batch} {kept} gradient checkpointing"
    )


def weightless(loaded: LoadedModel) -> LoadedModel:
    """Return a copy without weights, of which parameters can be frozen and exchanged."""
    model: Any = copy.deepcopy(loaded.model).to("meta")
    model.tie_weights()
    return replace(loaded, model=model)


def layer_elements(config: Any) -> int:
    """Return how many numbers one decoder layer keeps per token for the backward pass: 9 h + 2 k + 4 f.

    Each of two norms keeps its input, the normalised input and what the linear layers read (3 h); attention
    keeps queries, its output and what the output layer reads (3 h) and keys and values (2 k); a gated MLP
    keeps gate, up, activation and product (4 f). Assumed: dense layers, an attention kernel that makes no
    matrix of tokens by tokens, no dropout. Measured on saved tensors: 0.97 of Llama, 1.11 of Qwen3 (which
    also normalises queries and keys), 1.05 of GPT-2.
    """
    width, inner, heads = _sizes(config)
    keys = (getattr(config, "num_key_value_heads", None) or heads) * _head_size(config, width, heads)
    return 9 * width + 2 * keys + 4 * inner


def teacher_bytes(teacher: LoadedModel, options: LoadOptions) -> tuple[int, int]:
    """Return the bytes of the teacher's weights on the device and in the memory of the host."""
    model: Any = teacher.model
    layers = find_layers(model) + "." if options.placement == "cpu_offload" else None
    head = output_layer(model)
    sizes = {}
    for path, module in model.named_modules():
        # The output layer stays plain: the loss reads it.
        bits = _bits(options.quantisation) if isinstance(module, nn.Linear) and module is not head else None
        plain = _width_of(model.config, options.dtype)
        for name, parameter in module.named_parameters(recurse=False):
            width = bits / 8 if bits and parameter.ndim > 1 else plain
            # A tied parameter is counted once.
            sizes[id(parameter)] = (f"{path}.{name}", int(width * parameter.numel()))
    moving = [size for path, size in sizes.values() if layers is not None and path.startswith(layers)]
    staying = sum(size for _, size in sizes.values()) - sum(moving)
    # An offloaded layer visits the device matrix by matrix.
    return staying + max(moving, default=0), sum(moving)


def _activations(student: LoadedModel, train: TrainConfig, tokens: MicroBatchShape, *, size: int) -> int:
    """Return what the student keeps for the backward pass of `size` prompts.

    Without checkpointing every layer keeps its activations, and branches of a shared prefix copy its keys and
    values. With it, a layer keeps its input, one layer at a time is computed again, and a prefix is shared
    where attention takes a block mask. A vision tower that learns counts too.
    """
    width = BYTES_PER_ACTIVATION[train.precision]
    model: Any = student.model
    config = model.config.get_text_config()
    copies = student.adapter.supports_prefix_sharing and not train.gradient_checkpointing
    shares = shares_prefixes(student, in_one_forward=train.gradient_checkpointing)
    prefixes = size if shares else size * tokens.responses
    count = prefixes * tokens.prompt + size * tokens.responses * tokens.response
    total = width * count * _stack(config, train.gradient_checkpointing)
    if copies and tokens.responses > 1:
        total += width * size * tokens.responses * tokens.prompt * _cache_elements(config)
    vision = getattr(model.config, "vision_config", None)
    tower = student.adapter.parts.get("vision", ())
    learns = any(p.requires_grad for name, p in model.named_parameters() if name.startswith(tower))
    if vision is not None and learns:
        patches = prefixes * tokens.image * getattr(vision, "spatial_merge_size", 1) ** 2
        total += width * patches * _stack(vision, train.gradient_checkpointing)
    return total


def _stack(config: Any, checkpointing: bool) -> int:
    """Return the numbers that all layers keep per token."""
    layers = getattr(config, "num_hidden_layers", None) or config.depth
    if not checkpointing:
        return int(layers) * layer_elements(config)
    return int(layers) * _sizes(config)[0] + layer_elements(config)


def _teacher_activations(
    teacher: LoadedModel, size: int, tokens: MicroBatchShape, options: LoadOptions
) -> int:
    """Return the peak of a forward without gradients: one layer at work, and keys and values of them all."""
    model: Any = teacher.model
    config = model.config.get_text_config()
    count = size * (tokens.prompt + tokens.responses * tokens.response)
    cached = size * tokens.responses * (tokens.prompt + tokens.response) if tokens.responses > 1 else 0
    elements = count * layer_elements(config) + cached * _cache_elements(config)
    return int(_width_of(model.config, options.dtype) * elements)


def _cache_elements(config: Any) -> int:
    """Return the keys and values of one token in all layers."""
    width, _, heads = _sizes(config)
    keys = (getattr(config, "num_key_value_heads", None) or heads) * _head_size(config, width, heads)
    return 2 * int(config.num_hidden_layers) * keys


def _sizes(config: Any) -> tuple[int, int, int]:
    """Return width, inner width of the MLP and number of heads; vision configs use other names."""
    width = getattr(config, "embed_dim", None) or config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * width
    heads = getattr(config, "num_attention_heads", None) or config.num_heads
    return int(width), int(inner), int(heads)


def _head_size(config: Any, width: int, heads: int) -> int:
    return int(getattr(config, "head_dim", None) or width // heads)


def _width_of(config: Any, dtype: str) -> int:
    """Return the bytes of one weight; "auto" is what the config of the files says."""
    known = config.dtype if dtype == "auto" else getattr(torch, dtype)
    return known.itemsize if isinstance(known, torch.dtype) else FLOAT32


def _bits(quantisation: Mapping[str, Any] | None) -> int | None:
    """Return the bits of a quantised weight, block scales aside; None where the method does not tell."""
    if quantisation is None:
        return None
    if quantisation.get("load_in_4bit"):
        return 4
    if quantisation.get("load_in_8bit"):
        return 8
    if isinstance(number := quantisation.get("nbits", quantisation.get("bits")), int):
        return number
    text = str([quantisation.get(key) for key in ("weights", "quant_type")]).lower()
    return next((bits for bits in (2, 4, 8) if f"int{bits}" in text), None)


def _readable(size: int) -> str:
    for unit, factor in UNITS:
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size} B"
