"""The body of a model of transformers: everything before its output layer."""

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import Cache
from transformers.utils import ModelOutput

from vlm_distill.adapters.head import output_layer
from vlm_distill.errors import AdapterError

# What a processor makes for another purpose than the forward of a prompt.
NEVER = ("labels",)


def hidden_states(
    model: nn.Module,
    tokens: Int[Tensor, "b t"] | Float[Tensor, "b t width"],
    attention_mask: Int[Tensor, "b seen"] | Shaped[Tensor, "b 1 t t"],
    position_ids: Int[Tensor, "*axes b t"],
    extras: Mapping[str, Tensor],
    cache: Cache | None,
) -> Float[Tensor, "b t width"]:
    """Return the hidden states after the final norm and compute no logits; `cache` grows by the tokens.

    Of the extras those are passed on that the forward of the model names. Floating-point ones get the dtype
    of the model, because processors make float32 pixels.

    Raises:
        AdapterError: the model does not fill the cache that it is given.
    """
    dtype = dtype_of(model)
    whole: Any = model
    own = _named_by(whole.base_model.__class__)
    # Some bodies take by `**kwargs` what the whole model names.
    named = own | _named_by(whole.__class__)
    name_of_cache = cache_name(model)
    if cache is not None and _is_recurrent(cache):
        # What was before is in the states, where padding has left nothing.
        attention_mask = attention_mask[:, -tokens.shape[1] :]
    output = _run(
        model,
        attention_mask=attention_mask,
        position_ids=position_ids,
        use_cache=cache is not None,
        **{name_of_cache: cache, "inputs_embeds" if tokens.is_floating_point() else "input_ids": tokens},
        **{
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in extras.items()
            # A selection of prompts without images still carries their empty tensors.
            if name in named and len(value)
        },
    )
    if cache is not None and name_of_cache not in output:
        raise AdapterError(
            f"{type(model).__name__}: it keeps no key-value cache of transformers, so nothing can continue "
            "a prompt; choose another model"
        )
    hidden: Tensor = output.last_hidden_state
    # The last layer may live on another device than the first.
    return hidden.to(tokens.device)


def cache_name(model: nn.Module) -> str:
    """Return how a model calls its cache: so since transformers 5.24, and as before."""
    whole: Any = model
    named = _named_by(whole.base_model.__class__) | _named_by(whole.__class__)
    return "cache" if "cache" in named else "past_key_values"


@cache
def _named_by(kind: Any) -> frozenset[str]:
    """Return the arguments of a class's forward by name; to read them takes as long as a small layer."""
    return frozenset(inspect.signature(kind.forward).parameters).difference(NEVER)


def _run(model: nn.Module, **inputs: Any) -> Any:
    """Return the output of the body, `last_hidden_state` in it.

    A class without a body of its own is stopped before its output layer, which gets no rows.
    """
    whole: Any = model
    base = whole.base_model
    if base is not whole:
        return base(**inputs)
    seen: list[Tensor] = []

    def take(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        seen.append(args[0])
        return (args[0][:, :0],)

    with output_layer(whole).register_forward_pre_hook(take):
        output = whole(**inputs)
    return ModelOutput(**output, last_hidden_state=seen[-1])


def next_token_extras(
    model: nn.Module, token_extras: Mapping[str, Shaped[Tensor, "b t *rest"]]
) -> dict[str, Shaped[Tensor, "b 1 *rest"]]:
    """Return what a further token has of every value per token, as the model's own `generate` continues it.

    What it knows nothing of has the value of the last token.
    """
    loaded: Any = model
    last = {name: value[:, -1:] for name, value in token_extras.items()}
    further = loaded._update_model_kwargs_for_generation(ModelOutput(), dict(last), is_encoder_decoder=False)
    return {name: further[name][:, -1:] for name in last}


def _is_recurrent(cache: Cache) -> bool:
    """Return whether no layer attends to keys: all that a model remembers is a state."""
    return bool(cache.layers) and not any(hasattr(layer, "keys") for layer in cache.layers)


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return the dtype of the model's first floating-point weight; quantised weights are integers."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
