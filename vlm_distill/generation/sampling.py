"""The numerics of sampling: per-row uniforms and the choice of the next token. The loop is in decoding.py."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm_distill.files import hash_json
from vlm_distill.generation.engine import Sampling


def row_uniforms(example_ids: Sequence[str], sampling: Sampling) -> Float[Tensor, "row step"]:
    """Return one number in [0, 1) per row and decode step; rows are example-major, samples inside.

    A row's numbers depend on its example id, its sample index and the seed alone, so that neither the batch
    it is in nor a restart changes its response.
    """
    rows = [(example_id, index) for example_id in example_ids for index in range(sampling.num_samples)]
    uniforms = np.empty((len(rows), sampling.max_new_tokens), dtype=np.float32)
    for row, (example_id, sample_index) in enumerate(rows):
        # torch's CPU generator keeps 32 bits of a seed, and then two of 100,000 rows would share numbers.
        key = int(hash_json([sampling.seed, example_id, sample_index])[:32], 16)
        uniforms[row] = np.random.Generator(np.random.Philox(key=key)).random(
            sampling.max_new_tokens, dtype=np.float32
        )
    return torch.from_numpy(uniforms)


def choose_tokens(
    logits: Float[Tensor, "row vocab"], uniforms: Float[Tensor, " row"], sampling: Sampling
) -> Int[Tensor, " row"]:
    """Return each row's next token: the most likely at temperature 0, else the inverse CDF at its uniform.

    Temperature, then top-k, then top-p over what top-k left, as in transformers (where ties at the k-th place
    are all kept; here exactly k tokens stay).
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / sampling.temperature
    token_ids = None  # [row, kept] once the columns are no longer in the order of the ids
    if 0 < sampling.top_k < logits.shape[-1]:
        scaled, token_ids = scaled.topk(sampling.top_k, dim=-1)
    elif sampling.top_p < 1:
        scaled, token_ids = scaled.sort(dim=-1, descending=True, stable=True)
    probabilities = scaled.softmax(dim=-1)
    cumulative = probabilities.cumsum(dim=-1)
    total = cumulative[:, -1:]
    if sampling.top_p < 1:
        # Sorted by now: a token stays while the mass before it is below top_p, so the first always does.
        kept = cumulative - probabilities < sampling.top_p
        total = cumulative.masked_fill(~kept, 0.0).amax(dim=-1, keepdim=True)
    # Below `total` even after rounding: the first place above it is then a kept token with mass.
    target = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    # The clamp matters for rows of NaN only, which the decode loop aborts.
    place = torch.searchsorted(cumulative, target, right=True).clamp(max=cumulative.shape[-1] - 1)  # [row, 1]
    return (place if token_ids is None else token_ids.gather(1, place)).squeeze(1)
