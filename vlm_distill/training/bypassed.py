"""Linear layers whose weights a model reads past them, which matrices beside the layer cannot reach.

Recurrent layers multiply by `layer.weight` in their scan, and fused kernels take weights as arguments. Which
layers these are follows from the device and the mode too, so it is seen in a forward.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.batches import ResponseBatch
from vlm_distill.forward import unshared_hidden
from vlm_distill.models.trial_prompts import trial_prompts


@torch.no_grad()
def bypassed_layers(loaded: LoadedModel) -> set[nn.Module]:
    """Return the linear layers that a forward of training reads and does not call; none without weights.

    Others may be both, where a model asks a weight for its dtype, or neither, as experts that get no token.
    """
    if loaded.device.type == "meta":
        return set()
    read, called = set[nn.Module](), set[nn.Module]()
    response = ResponseBatch(
        prompt_index=torch.tensor([0]),
        input_ids=torch.tensor([[loaded.stop_ids[0]]]),
        mask=torch.tensor([[True]]),
        author=torch.tensor([0]),
    )
    devices = [loaded.device] if loaded.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        _training(loaded.model),
        _watched(loaded.model, read, called),
    ):
        for prompts in trial_prompts(loaded).values():
            # As responses are trained, without a cache: the last token of one is not forwarded.
            unshared_hidden(loaded, prompts.to(loaded.device), response.to(loaded.device))
    return read - called


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Put the model into training mode, in which some take other kernels; running statistics stay."""
    before = {module: module.training for module in model.modules()}
    for module in before:
        module.training = not getattr(module, "track_running_stats", False)
    try:
        yield
    finally:
        for module, was_training in before.items():
            module.training = was_training


@contextmanager
def _watched(model: nn.Module, read: set[nn.Module], called: set[nn.Module]) -> Iterator[None]:
    """Collect the linear layers whose weight is read from outside of them, and those that are called."""
    classes: dict[nn.Module, type[nn.Module]] = {
        module: type(module) for module in model.modules() if isinstance(module, nn.Linear)
    }
    for module, kind in classes.items():
        module.__class__ = _watching(kind, read, called)
    try:
        yield
    finally:
        for module, kind in classes.items():
            module.__class__ = kind


def _watching(kind: type[nn.Module], read: set[nn.Module], called: set[nn.Module]) -> type[nn.Module]:
    class Watching(kind):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            called.add(self)
            return super().forward(*args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            if name == "weight":
                read.add(self)
            return super().__getattr__(name)

    return Watching
