"""The adapter record: what the rest of the package needs to know about a model family, as functions.

Every hook has a generic default (chat.py, positions.py, body.py, head.py), so a family writes down only what
is special about it, in a file of its own; catalog.py has the known ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Shaped
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlm_distill.adapters.body import hidden_states
from vlm_distill.adapters.chat import encode_image_text
from vlm_distill.adapters.head import output_head
from vlm_distill.adapters.positions import own_positions
from vlm_distill.batches import Head, PromptBatch
from vlm_distill.records import Example

Part = str  # "vision", "projector" or "language"
Placement = Literal["same_device", "device_map", "cpu_offload"]

PIXELS = "pixel_values"
FEATURES = "image_features"
"""The name in `PromptBatch.extras` of features that take the place of pixels, one row per image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOptions:
    """How a model is loaded: dtype by name ("auto" is that of the files), where, may its own code run.

    `placement` `device_map` spreads it over all accelerators of this machine, `cpu_offload` keeps its decoder
    layers on the CPU and moves each to `device` for its forward. `quantisation` is a quantization config of
    transformers (`{"quant_method": "bitsandbytes", "load_in_4bit": True}`). Both are for models that are not
    trained.
    """

    dtype: str = "float32"
    device: str = "cpu"
    placement: Placement = "same_device"
    quantisation: Mapping[str, Any] | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """A model family; the defaults serve most image-text families.

    `parts` maps vision, projector and language to module-name prefixes; the longest one that fits wins. Left
    empty they are found from the modules of a model (models/parts.py).
    `model_class` and `processor_class` are the classes of transformers that read a folder (a tokenizer for
    text models).

    `encode(processor, examples, images)` applies the chat template and returns a left-padded batch;
    `images[i]` are the pictures of `examples[i]`. Every prompt is processed alone, so that `extra_counts`
    follow from the rows it adds. It never truncates.
    `position_ids(model, input_ids, attention_mask, extras)` returns positions that ignore padding, [b, t], or
    [axes, b, t] for families with several; on every axis a response goes on from the prompt's last one.
    `extras` of this and the next hook are all other tensors of a batch, those per token as long as the ids.
    `backbone(model, tokens, attention_mask, position_ids, extras, cache)` returns hidden states after the
    final norm, on the device of `tokens`, which are ids or what `insert_features` made of them. A key-value
    cache of transformers is appended to, and the mask then covers what it holds as well; None keeps nothing.
    The mask may also say which keys each query sees (models/block_mask.py). Only forward.py calls it, for
    training, scoring and generation alike.
    `head(model)` returns the output layer.
    `supports_prefix_sharing` says that several continuations of one prefix can share its cache, which
    recurrent states do not allow, `supports_one_sequence` that they can follow it in one sequence under a
    mask, `supports_left_padding` that padding before a prompt changes nothing: without it rows are padded
    behind their tokens, nothing is shared, and prompts are answered one at a time. All are measured on the
    model (conformance/facts.py); a record can only forbid them.

    Three hooks let a frozen vision tower run once per image; None where images enter in another way.
    `image_features(model, pixels)` returns what the tower (`parts["vision"]`) gives, before the projector,
    one row per image. `insert_features(model, input_ids, features)` returns the embeddings of a prompt with
    projected features in the places of its image tokens. `feature_settings(config)` returns the keys and
    values of the config that decide what of the tower is read; nothing for a model with images of any size.

    `state_dict_names(config, name)` returns the name under which a saved tensor is stored; None keeps the
    names of transformers.
    """

    name: str
    model_types: tuple[str, ...]
    parts: Mapping[Part, tuple[str, ...]] = field(default_factory=dict)
    model_class: Any = AutoModelForImageTextToText
    processor_class: Any = AutoProcessor
    encode: Callable[[Any, Sequence[Example], Sequence[Sequence[Image.Image]]], PromptBatch] = (
        encode_image_text
    )
    position_ids: Callable[
        [nn.Module, Int[Tensor, "b t"], Int[Tensor, "b t"], Mapping[str, Tensor]], Int[Tensor, "*axes b t"]
    ] = own_positions
    backbone: Callable[
        [
            nn.Module,
            Int[Tensor, "b t"] | Float[Tensor, "b t width"],
            Int[Tensor, "b seen"] | Shaped[Tensor, "b 1 t t"],
            Int[Tensor, "*axes b t"],
            Mapping[str, Tensor],
            Any,
        ],
        Float[Tensor, "b t width"],
    ] = hidden_states
    head: Callable[[nn.Module], Head] = output_head
    supports_prefix_sharing: bool = True
    supports_one_sequence: bool = True
    supports_left_padding: bool = True
    image_features: (
        Callable[
            [nn.Module, Float[Tensor, "image channel height width"]], Float[Tensor, "image token features"]
        ]
        | None
    ) = None
    insert_features: (
        Callable[
            [nn.Module, Int[Tensor, "b t"], Float[Tensor, "image token features"]], Float[Tensor, "b t width"]
        ]
        | None
    ) = None
    feature_settings: Callable[[Any], Mapping[str, Any]] | None = None
    state_dict_names: Callable[[Any, str], str] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model in memory with everything that is needed to prompt it.

    `fingerprint` is the hash of weights and processor files; `stop_ids` end a generated response, the
    first of them a label.
    `image_token_ids` stand for image features: generation must never emit one, because a response that holds
    one cannot be forwarded again. `vision_cache`, where given, replaces the pixels of encoded prompts by
    features of the tower (models/vision_cache.py).
    """

    adapter: Adapter
    model: nn.Module
    processor: Any
    tokenizer: Any
    path: str
    fingerprint: str
    stop_ids: tuple[int, ...]
    image_token_ids: tuple[int, ...] = ()
    vision_cache: Callable[["LoadedModel", PromptBatch], PromptBatch] | None = None

    @property
    def device(self) -> torch.device:
        """Where prompts and responses go: beside the input embeddings, wherever other weights live."""
        model: Any = self.model
        device: torch.device = model.get_input_embeddings().weight.device
        return device

    @property
    def head(self) -> Head:
        """The output layer, the live parameters."""
        return self.adapter.head(self.model)

    def encode(self, examples: Sequence[Example], images: Sequence[Sequence[Image.Image]]) -> PromptBatch:
        prompts = self.adapter.encode(self.processor, examples, images)
        return prompts if self.vision_cache is None else self.vision_cache(self, prompts)
