"""Which parameters of a model are its vision, its projector and its language model, read off its modules.

What the config of an encoder built is vision, the decoder with its embeddings and output layer is language,
and what is left between them is the projector.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from vlm_distill.adapters.adapter import Part
from vlm_distill.adapters.head import output_layer
from vlm_distill.models.layers import decoder_of

ENCODERS = ("vision_config", "audio_config", "high_res_vision_config", "vq_config")
MERGERS = (
    "merger",
    "merger_list",
    "deepstack_merger_list",
    "patch_merger",
    "projector",
    "connector",
    "aligner",
)
"""Modules inside a tower that make its features the language model's."""


def find_parts(model: nn.Module) -> Mapping[Part, tuple[str, ...]]:
    """Return the prefixes of the parameters of each component; a model without towers is all language.

    Encoders of sound are vision too: they are read beside the text.
    """
    loaded: Any = model
    names = {module: f"{name}." for name, module in model.named_modules() if name}
    words = (decoder_of(model), loaded.get_input_embeddings(), output_layer(model))
    language = _outermost(names[module] for module in words if module in names)
    towers = _outermost(names[module] for module in _towers(model) if module in names)
    if not towers and any(getattr(loaded.config, key, None) for key in ENCODERS):
        # Pictures without a tower: patches are embedded like words.
        towers = tuple(_others(model, language))
    if not towers:
        return {"language": ("",)}
    mergers = tuple(f"{tower}{name}." for tower in towers for name in MERGERS)
    inside = tuple(merger for merger in mergers if merger in names.values())
    between = tuple(_others(model, (*towers, *language)))
    found = {"vision": towers, "projector": (*inside, *between), "language": language}
    return {part: prefixes for part, prefixes in found.items() if prefixes}


def _towers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield transformers' own guesses of encoders, and what the configs of encoders built."""
    loaded: Any = model
    # A model without one gives itself.
    yield from (loaded.get_encoder(modality=kind) for kind in ("image", "audio"))
    kinds = {type(getattr(loaded.config, key)) for key in ENCODERS if getattr(loaded.config, key, None)}
    yield from (module for module in model.modules() if type(getattr(module, "config", None)) in kinds)


def _outermost(prefixes: Iterator[str]) -> tuple[str, ...]:
    known = tuple(dict.fromkeys(prefixes))
    return tuple(one for one in known if not any(one != other and one.startswith(other) for other in known))


def _others(module: nn.Module, known: tuple[str, ...], prefix: str = "") -> Iterator[str]:
    """Yield the shortest prefixes of the parameters that lie below none of the known ones."""
    for name, child in module.named_children():
        path = f"{prefix}{name}."
        if any(one.startswith(path) for one in known):
            if path not in known:
                yield from _others(child, known, path)
        elif any(True for _ in child.parameters()):
            yield path
    yield from (f"{prefix}{name}" for name, _ in module.named_parameters(recurse=False))
