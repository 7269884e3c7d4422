"""Hidden states that predict response tokens, with and without a shared prefix, in one signature.

Response token j is predicted by the hidden state of token j - 1, for j = 0 by the last position of the
prompt.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.recompute import drops_cache
from vlm_distill.batches import PromptBatch, ResponseBatch


def response_hidden(
    loaded: LoadedModel, prompts: PromptBatch, responses: ResponseBatch
) -> Float[Tensor, "row width"]:
    """Return the hidden state that predicts each valid response token, row-major over `responses.mask`.

    The prefix (prompt and images) runs once per prompt where several responses share it, the family allows it
    and no activations are recomputed.
    """
    num_prompts, num_responses = len(prompts.input_ids), len(responses.input_ids)
    if shares_prefixes(loaded) and num_responses > num_prompts:
        return prefix_shared_hidden(loaded, prompts, responses)
    return separate_hidden(loaded, prompts, responses)


def shares_prefixes(loaded: LoadedModel) -> bool:
    """Say whether responses of one prompt share its forward, in the mode that the model is in."""
    return loaded.adapter.branches_cache and not drops_cache(loaded.model)


def separate_hidden(
    loaded: LoadedModel, prompts: PromptBatch, responses: ResponseBatch
) -> Float[Tensor, "row width"]:
    """Forward every response with its own copy of its prompt.

    Both are one sequence: left-padded prompt, right-padded response.
    """
    repeated = prompts.select(responses.prompt_index)
    input_ids = torch.cat([repeated.input_ids, responses.input_ids], dim=1)
    mask = torch.cat([repeated.attention_mask, responses.mask.to(repeated.attention_mask.dtype)], dim=1)
    # The last response token predicts nothing.
    input_ids, mask = input_ids[:, :-1], mask[:, :-1]
    adapter, model = loaded.adapter, loaded.model
    positions = adapter.position_ids(model, input_ids, mask, repeated.extras)
    hidden = adapter.backbone(model, input_ids, mask, positions, repeated.extras, None)
    predicting = hidden[:, repeated.input_ids.shape[1] - 1 :]  # [response, token, width]
    return predicting[responses.mask]


def prefix_shared_hidden(
    loaded: LoadedModel, prompts: PromptBatch, responses: ResponseBatch
) -> Float[Tensor, "row width"]:
    """Forward every prompt once and branch its key-value cache to its responses.

    The cache keeps the graph in training. Equal to `separate_hidden`, gradients included, up to rounding.
    """
    adapter, model, index = loaded.adapter, loaded.model, responses.prompt_index
    config: Any = model.config
    cache = DynamicCache(config=config.get_text_config())
    positions = adapter.position_ids(model, prompts.input_ids, prompts.attention_mask, prompts.extras)
    prefix = adapter.backbone(
        model, prompts.input_ids, prompts.attention_mask, positions, prompts.extras, cache
    )
    first = prefix[index, -1:]  # [response, 1, width]
    width = responses.input_ids.shape[1] - 1
    if width < 1:
        return first[:, : width + 1][responses.mask]
    cache.reorder_cache(index)  # each layer on the device that holds it
    mask = torch.cat(
        [prompts.attention_mask[index], responses.mask[:, :-1].to(prompts.attention_mask.dtype)], dim=1
    )
    # [response, token] or [axis, response, token]; on every axis a response goes on from its prompt's end.
    following = positions[..., index, -1:] + torch.arange(1, width + 1, device=index.device)
    rest = adapter.backbone(model, responses.input_ids[:, :-1], mask, following, {}, cache)
    return torch.cat([first, rest], dim=1)[responses.mask]
