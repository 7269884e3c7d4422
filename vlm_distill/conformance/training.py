"""Checks of what training may switch on: recomputed activations, features of a frozen tower, LoRA."""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.conformance.findings import Finding, compare_values, does_not_apply
from vlm_distill.conformance.logits import Result, compare_results, forward_logits, with_gradients
from vlm_distill.conformance.probes import LARGE, Probe
from vlm_distill.errors import AdapterError
from vlm_distill.forward import response_hidden, unshared_hidden
from vlm_distill.models.feature_store import FeatureStore, VisionCacheConfig
from vlm_distill.models.gradient_checkpointing import recompute_activations
from vlm_distill.models.lora import Lora, add_lora, merge_lora, part_of
from vlm_distill.models.vision_cache import why_not_cached, with_vision_cache
from vlm_distill.training.bypassed import bypassed_layers

LORA = Lora(rank=4, alpha=8)
MERGED = 4.0
"""By how much more than rounding elsewhere merged matrices may differ; another model does by 1e-2."""


def checkpointing(probe: Probe) -> Finding:
    """Recomputed activations, in training mode, give logits and gradients of kept ones.

    Both draw the same random numbers where the model drops activations out.
    """
    student = _changed(probe.few, lambda loaded: loaded.model.train())
    try:
        recomputed = _changed(student, lambda loaded: recompute_activations(loaded.model))
    except AdapterError as error:
        return does_not_apply(str(error))
    return compare_results("recomputed activations", _seeded(recomputed), _seeded(student))


def vision_cache(probe: Probe) -> Finding:
    """Features of a frozen tower in the place of pixels give logits and gradients of the tower's forward."""
    reason = why_not_cached(probe.loaded)
    if reason:
        return does_not_apply(reason)
    frozen = _changed(probe, _freeze_tower)
    store = FeatureStore(VisionCacheConfig(disk_gib=0), folder=None)
    cached = replace(frozen, loaded=with_vision_cache(frozen.loaded, store))
    expected, found = (with_gradients(one, forward_logits(response_hidden)) for one in (frozen, cached))
    return compare_results("features of a frozen tower", found, expected)


@torch.no_grad()
def lora(probe: Probe) -> Finding:
    """Merged LoRA matrices of the language model give the logits that they gave beside its weights."""
    try:
        student = _changed(probe.few, _add_moved_matrices)
    except AdapterError as error:
        return does_not_apply(str(error))
    expected = forward_logits(unshared_hidden)(student)
    merge_lora(student.loaded)
    found = forward_logits(unshared_hidden)(student)
    # A merged weight is rounded once more than the two products that it stands for, in every layer.
    return compare_values("merged matrices", found, expected, slack=MERGED)


def _changed(probe: Probe, change: Callable[[LoadedModel], object]) -> Probe:
    """Return the probe with a changed copy of its model, which shares large frozen embeddings with it."""
    model = probe.loaded.model
    shared = {id(one): one for one in model.parameters() if one.numel() > LARGE and not one.requires_grad}
    loaded = replace(probe.loaded, model=copy.deepcopy(model, memo=dict(shared)))
    change(loaded)
    return replace(probe, loaded=loaded)


def _seeded(probe: Probe) -> Result:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return with_gradients(probe, forward_logits(unshared_hidden))


def _freeze_tower(loaded: LoadedModel) -> None:
    for name, parameter in loaded.model.named_parameters():
        if part_of(name, loaded.adapter.parts) == "vision":
            parameter.requires_grad_(False)


def _add_moved_matrices(loaded: LoadedModel) -> None:
    """Add matrices in place and move them from where they change nothing."""
    add_lora(loaded, {"language": LORA}, seed=0, without=bypassed_layers(loaded))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in loaded.model.named_parameters():
        if ".lora_" in name:
            noise = 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter))
