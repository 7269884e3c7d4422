"""Hidden states of a model: the only door to its body, for training, scoring and generation.

Response token j is predicted by the hidden state of token j - 1, for j = 0 by the last position of the
prompt. `response_hidden` gives them for whole responses, with and without a shared prefix in one signature;
`forward_prompts` begins a response that is continued token by token.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from vlm_distill.adapters.adapter import FEATURES, LoadedModel
from vlm_distill.adapters.body import next_token_extras
from vlm_distill.batches import PromptBatch, ResponseBatch
from vlm_distill.models.block_mask import block_mask, takes_block_mask
from vlm_distill.models.gradient_checkpointing import cache_disabled
from vlm_distill.models.recurrent_states import keep_states, steps_in_place


def response_hidden(
    loaded: LoadedModel, prompts: PromptBatch, responses: ResponseBatch
) -> Float[Tensor, "row width"]:
    """Return the hidden state that predicts each valid response token, row-major over `responses.mask`.

    The prefix (prompt and images) runs once per prompt where several responses share it and the family
    allows it: as a cache, or in one sequence where activations are recomputed, which drops the cache.
    """
    if cache_disabled(loaded.model):
        return single_forward_hidden(loaded, prompts, responses)
    if shares_prefixes(loaded) and len(responses.input_ids) > len(prompts.input_ids):
        return prefix_shared_hidden(loaded, prompts, responses)
    return unshared_hidden(loaded, prompts, responses)


def single_forward_hidden(
    loaded: LoadedModel, prompts: PromptBatch, responses: ResponseBatch
) -> Float[Tensor, "row width"]:
    """Return the same from one forward, whatever the batch, and without a cache."""
    shares = shares_prefixes(loaded, in_one_forward=True) and responses.input_ids.shape[1] > 0
    if shares and len(responses.input_ids) > len(prompts.input_ids):
        return tree_attention_hidden(loaded, prompts, responses)
    return unshared_hidden(loaded, prompts, responses)


def shares_prefixes(loaded: LoadedModel, *, in_one_forward: bool = False) -> bool:
    """Say whether responses of one prompt share its forward, in the mode that the model is in."""
    if not loaded.adapter.supports_left_padding:
        return False
    if in_one_forward or cache_disabled(loaded.model):
        return loaded.adapter.supports_one_sequence and takes_block_mask(loaded.model)
    return loaded.adapter.supports_prefix_sharing


def unshared_hidden(
    loaded: LoadedModel, prompts: PromptBatch, responses: ResponseBatch
) -> Float[Tensor, "row width"]:
    """Forward every response with its own copy of its prompt.

    Both are one sequence: left-padded prompt, right-padded response. Where padding on the left reaches the
    numbers it goes behind the response, where no token sees it.
    """
    index = responses.prompt_index
    repeated = prompts.select(index)
    input_ids = torch.cat([repeated.input_ids, responses.input_ids], dim=1)
    mask = torch.cat([repeated.attention_mask, responses.mask.to(repeated.attention_mask.dtype)], dim=1)
    # The last response token predicts nothing.
    input_ids, mask = input_ids[:, :-1], mask[:, :-1]
    continued = _continued(loaded, repeated, responses.input_ids.shape[1])
    extras = {**repeated.extras, **{name: value[:, :-1] for name, value in continued.items()}}
    # The model's own function would read marks of images and sounds in a response as if they stood for some.
    positions = _positions(loaded, prompts)[..., index, :]
    following = positions[..., -1:] + responses.mask.cumsum(dim=1)
    positions = torch.cat([positions, following], dim=-1)[..., :-1]
    if loaded.adapter.supports_left_padding:
        hidden = _hidden(loaded, input_ids, mask, positions, extras)
    else:
        hidden = _padded_right(loaded, input_ids, mask, positions, extras, per_token=continued)
    predicting = hidden[:, repeated.input_ids.shape[1] - 1 :]  # [response, token, width]
    return predicting[responses.mask]


def prefix_shared_hidden(
    loaded: LoadedModel, prompts: PromptBatch, responses: ResponseBatch
) -> Float[Tensor, "row width"]:
    """Forward every prompt once and branch its key-value cache to its responses.

    The cache keeps the graph in training. Equal to `unshared_hidden`, gradients included, up to rounding.
    """
    index, width = responses.prompt_index, responses.input_ids.shape[1] - 1
    hidden, prefix = forward_prompts(loaded, prompts)
    first = hidden[index, -1:]  # [response, 1, width]
    if width < 1:
        return first[:, : width + 1][responses.mask]
    prefix.select(index)
    tokens, valid = responses.input_ids[:, :-1], responses.mask[:, :-1]
    if width == 1 and steps_in_place(prefix.cache):
        # Padding behind it sends the token the way of several, which keeps the graph.
        tokens, valid = tokens.repeat(1, 2), pad(valid, (0, 1))
    rest = prefix.extend(tokens, valid)[:, :width]
    return torch.cat([first, rest], dim=1)[responses.mask]


def tree_attention_hidden(
    loaded: LoadedModel, prompts: PromptBatch, responses: ResponseBatch
) -> Float[Tensor, "row width"]:
    """Forward every prompt with all its responses behind it, which see the prompt but not each other.

    Every response continues the positions of its prompt. Equal to `unshared_hidden`, gradients included, up
    to rounding.
    """
    model, index = loaded.model, responses.prompt_index
    num_prompts, prompt_width = prompts.input_ids.shape
    width = responses.input_ids.shape[1] - 1  # the last response token predicts nothing
    slot = _slots(index)
    num_slots = int(slot.max()) + 1
    shape = (num_prompts, num_slots, width)
    # From [response, token] to [prompt, slot, token]: the responses of a prompt lie side by side.
    tokens, valid = prompts.input_ids.new_zeros(shape), responses.mask.new_zeros(shape)
    tokens[index, slot], valid[index, slot] = responses.input_ids[:, :-1], responses.mask[:, :-1]
    input_ids = torch.cat([prompts.input_ids, tokens.flatten(1)], dim=1)
    is_key = torch.cat([prompts.attention_mask.bool(), valid.flatten(1)], dim=1)
    # 0 is the prompt, which every branch sees.
    branch = torch.arange(1, num_slots + 1, device=index.device).repeat_interleave(width)
    branch = torch.cat([branch.new_zeros(prompt_width), branch])
    positions = _positions(loaded, prompts)
    following = positions[..., -1:] + torch.arange(1, width + 1, device=index.device).repeat(num_slots)
    mask = block_mask(model, _allowed(is_key, branch))
    extras = {**prompts.extras, **_continued(loaded, prompts, num_slots * width)}
    hidden = _hidden(loaded, input_ids, mask, torch.cat([positions, following], dim=-1), extras)
    first = hidden[index, prompt_width - 1].unsqueeze(1)  # [response, 1, width]
    # [prompt, slots * token, width] to [prompt, slot, token, width] to [response, token, width]
    rest = hidden[:, prompt_width:].unflatten(1, (num_slots, width))[index, slot]
    return torch.cat([first, rest], dim=1)[responses.mask]


@dataclass(kw_only=True, slots=True)
class CachedPrefix:
    """What was forwarded so far of every row, and is seen by the tokens that come next.

    `cache` holds keys and values, `mask` the rows' tokens that they may see, `last` the position of each
    row's last token on every axis, `token_extras` what each further token has.
    """

    loaded: LoadedModel
    cache: Any
    mask: Int[Tensor, "row seen"]
    last: Int[Tensor, "*axes row 1"]
    token_extras: Mapping[str, Shaped[Tensor, "row 1 *rest"]]

    def select(self, rows: Int[Tensor, " selected"]) -> None:
        """Keep the given rows, in that order, repeats included."""
        # Each layer on its own device; unlike batch_repeat_interleave, recurrent states have it too.
        self.cache.reorder_cache(rows)
        self.mask, self.last = self.mask[rows], self.last[..., rows, :]
        self.token_extras = {name: value[rows] for name, value in self.token_extras.items()}

    def extend(
        self, input_ids: Int[Tensor, "row new"], mask: Bool[Tensor, "row new"] | None = None
    ) -> Float[Tensor, "row new width"]:
        """Return the hidden states of tokens that continue the rows, which they become a part of.

        Without a mask none of them is padding.
        """
        mask = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask
        self.mask = torch.cat([self.mask, mask.to(self.mask.dtype)], dim=1)
        # [row, new] or [axis, row, new]: on every axis a response goes on from its prompt's end.
        positions = self.last + torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
        self.last = positions[..., -1:]
        extras = {name: _repeated(value, input_ids.shape[1]) for name, value in self.token_extras.items()}
        return _hidden(self.loaded, input_ids, self.mask, positions, extras, self.cache)


def prompt_hidden(loaded: LoadedModel, prompts: PromptBatch) -> Float[Tensor, "prompt token width"]:
    """Return the hidden states of the prompts, which nothing continues."""
    extras = {**prompts.extras, **prompts.token_extras}
    positions = _positions(loaded, prompts)
    return _hidden(loaded, prompts.input_ids, prompts.attention_mask, positions, extras)


def forward_prompts(
    loaded: LoadedModel, prompts: PromptBatch
) -> tuple[Float[Tensor, "prompt token width"], CachedPrefix]:
    """Return the hidden states of the prompts, and what continues them; the cache keeps the graph."""
    config: Any = loaded.model.config
    cache = DynamicCache(config=config.get_text_config())
    keep_states(cache)
    ids, mask = prompts.input_ids, prompts.attention_mask
    extras = {**prompts.extras, **prompts.token_extras}
    positions = _positions(loaded, prompts)
    hidden = _hidden(loaded, ids, mask, positions, extras, cache)
    following = next_token_extras(loaded.model, prompts.token_extras)
    return hidden, CachedPrefix(
        loaded=loaded, cache=cache, mask=mask, last=positions[..., -1:], token_extras=following
    )


def _positions(loaded: LoadedModel, prompts: PromptBatch) -> Int[Tensor, "*axes prompt t"]:
    extras = {**prompts.extras, **prompts.token_extras}
    return loaded.adapter.position_ids(loaded.model, prompts.input_ids, prompts.attention_mask, extras)


def _hidden(
    loaded: LoadedModel,
    input_ids: Int[Tensor, "b t"],
    mask: Int[Tensor, "b seen"] | Shaped[Tensor, "b 1 t t"],
    positions: Int[Tensor, "*axes b t"],
    extras: Mapping[str, Tensor],
    cache: Any = None,
) -> Float[Tensor, "b t width"]:
    """Return the hidden states after the final norm; features of images enter as embeddings."""
    adapter, model = loaded.adapter, loaded.model
    features = extras.get(FEATURES)
    if features is None:
        return adapter.backbone(model, input_ids, mask, positions, extras, cache)
    tokens: Tensor = input_ids
    # A selection of prompts without images still carries their empty tensor.
    if len(features):
        assert adapter.insert_features is not None
        tokens = adapter.insert_features(model, input_ids, features)
    rest = {name: value for name, value in extras.items() if name != FEATURES}
    return adapter.backbone(model, tokens, mask, positions, rest, cache)


def _continued(
    loaded: LoadedModel, prompts: PromptBatch, width: int
) -> dict[str, Shaped[Tensor, "prompt t *rest"]]:
    """Return the values per token of the prompts and of so many tokens behind them."""
    following = next_token_extras(loaded.model, prompts.token_extras)
    return {
        name: torch.cat([value, _repeated(following[name], width)], dim=1)
        for name, value in prompts.token_extras.items()
    }


def _repeated(value: Shaped[Tensor, "row 1 *rest"], width: int) -> Shaped[Tensor, "row width *rest"]:
    return value.expand(-1, width, *value.shape[2:])


def _padded_right(
    loaded: LoadedModel,
    input_ids: Int[Tensor, "b t"],
    mask: Int[Tensor, "b t"],
    positions: Int[Tensor, "*axes b t"],
    extras: Mapping[str, Tensor],
    *,
    per_token: Iterable[str],
) -> Float[Tensor, "b t width"]:
    """Return the same with the padding of every row behind its tokens; the states stand where the ids do."""
    order = (mask == 0).int().argsort(dim=1, stable=True)
    rows = torch.arange(len(order), device=order.device)[:, None]
    moved = {**extras, **{name: extras[name][rows, order] for name in per_token}}
    hidden = _hidden(loaded, input_ids[rows, order], mask[rows, order], positions[..., rows, order], moved)
    return hidden[rows, order.argsort(dim=1)]


def _slots(prompt_index: Int[Tensor, " response"]) -> Int[Tensor, " response"]:
    """Return how many responses to the same prompt stand before each one."""
    return (prompt_index[:, None] == prompt_index).tril(-1).sum(dim=1)


def _allowed(is_key: Bool[Tensor, "b t"], branch: Int[Tensor, " t"]) -> Bool[Tensor, "b t t"]:
    """Return which keys each query sees: of its own branch and of the prompt, none behind itself."""
    same = (branch == branch[:, None]) | (branch == 0)
    # Padding sees itself: a softmax over nothing is not a number.
    itself = torch.eye(len(branch), dtype=torch.bool, device=branch.device)
    return is_key[:, None, :] & same.tril() | itself
