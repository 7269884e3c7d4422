"""A small random copy of a model, on which its structure is checked: no weight of it is read.

All weights are random, gates, biases and norms too: a zero would hide that something is not reached.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.foreign import blame
from vlm_distill.conformance.oracle import own_inputs, plain_logits
from vlm_distill.conformance.probes import LARGE, probe_of
from vlm_distill.conformance.smaller import CUTS, Cut, smaller_config


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomCopy:
    """A random model of the same structure, in float32 and on the CPU, and what it has fewer of."""

    loaded: LoadedModel
    said: str


def random_copy(loaded: LoadedModel) -> RandomCopy:
    """Return a random copy of a model, which may be a skeleton, with the same processor.

    It has as few layers as show every kind of layer once. Where such a model cannot be built or forwarded,
    more of it stays (smaller.CUTS).
    """
    for cut in CUTS[:-1]:
        try:
            copied = _copy(loaded, cut)
            _forward(copied)
        # Whatever the family's code raises says that its parts depend on each other.
        except Exception as error:
            blame(error)
            continue
        return RandomCopy(loaded=copied, said=cut.said)
    return RandomCopy(loaded=_copy(loaded, CUTS[-1]), said=CUTS[-1].said)


def randomise(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Return the model, in eval mode, all of whose weights are random, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=_scale(parameter.shape), generator=generator)
            else:
                # Norms and scales stay near what they were, so that nothing overflows.
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point() and name in model.state_dict():
                # Variances stay positive.
                buffer.add_(torch.rand(buffer.shape, generator=generator), alpha=0.1)
    loaded: Any = model
    loaded.tie_weights()
    return model.eval()


def _scale(shape: torch.Size) -> float:
    """Return a scale with which numbers keep their size through a layer."""
    # A matrix has [out, in], experts [expert, out, in], a convolution [out, in, *kernel].
    return 1 / math.sqrt(math.prod(shape[1:]) if len(shape) > 3 else max(shape[1:]))


def _copy(loaded: LoadedModel, cut: Cut) -> LoadedModel:
    config = smaller_config(loaded, cut)
    original: Any = loaded.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = type(original)._from_config(config, dtype=torch.float32)
    model.generation_config = original.generation_config
    randomise(model, seed=1)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if layer is not None and layer.weight.numel() > LARGE:
            layer.weight.requires_grad_(False)
    return replace(loaded, model=model, fingerprint="", vision_cache=None)


@torch.no_grad()
def _forward(copied: LoadedModel) -> None:
    logits = plain_logits(copied, own_inputs(probe_of(copied), 0), [copied.stop_ids[0]])
    if not logits.isfinite().all():
        raise FloatingPointError("not finite")
