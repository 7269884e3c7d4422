"""Recurrent states of a cache that gradients go through: transformers' own cache overwrites them in place.

What reads a state keeps it for the backward pass, so the next one has to be a tensor of its own.
"""

from functools import partial
from typing import Any

from torch import Tensor


def keep_states(cache: Any) -> None:
    """Make the recurrent layers of a cache, in place, take a new state instead of copying it into the old."""
    for layer in _recurrent(cache):
        layer.update_recurrent_state = partial(_assign, layer)


def steps_in_place(cache: Any) -> bool:
    """Return whether a single token may overwrite a state, for which some layers have a way of their own."""
    return bool(_recurrent(cache))


def _recurrent(cache: Any) -> list[Any]:
    return [layer for layer in cache.layers if hasattr(layer, "update_recurrent_state")]


def _assign(layer: Any, state: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
    layer.recurrent_states[state_idx] = state
    layer.is_recurrent_states_initialized[state_idx] = True
    return state
