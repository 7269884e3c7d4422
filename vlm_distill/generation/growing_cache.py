"""A key-value cache that grows in place: transformers' own copies all keys and values for every token.

Only full-attention layers are exchanged; sliding windows and recurrent states keep their own classes.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

# Tokens of room that a buffer gets when it is made or full.
SPARE = 64


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A layer whose keys and values are the written part of a larger buffer.

    Taking rows out (`reorder_cache`) leaves plain tensors, which move to a new buffer with the next token.
    """

    keys: Any  # tensors of shape [row, head, token, size] once filled
    values: Any
    _buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        length, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        buffers = self._buffers
        if buffers is None or buffers[0].data_ptr() != self.keys.data_ptr() or buffers[0].shape[-2] < end:
            buffers = _with_room(self.keys, end + SPARE), _with_room(self.values, end + SPARE)
        self._buffers = buffers
        for buffer, new in zip(buffers, (key_states, value_states), strict=True):
            buffer[..., length:end, :] = new
        self.keys, self.values = (buffer[..., :end, :] for buffer in buffers)
        return self.keys, self.values


def grow_in_place(cache: Any) -> None:
    """Exchange the full-attention layers of a filled cache of transformers, in place."""
    for number, layer in enumerate(cache.layers):
        # A subclass keeps more than keys and values.
        if type(layer) is DynamicLayer and layer.is_initialized:
            growing = GrowingLayer()
            growing.lazy_initialization(layer.keys, layer.values)
            growing.keys, growing.values = layer.keys, layer.values
            cache.layers[number] = growing


def _with_room(held: Tensor, length: int) -> Tensor:
    buffer = torch.empty((*held.shape[:-2], length, held.shape[-1]), dtype=held.dtype, device=held.device)
    buffer[..., : held.shape[-2], :] = held
    return buffer
