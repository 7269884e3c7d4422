"""The decode loop: one prefill per prompt, a KV cache shared by its samples, finished rows taken out.

`model.generate` has neither per-row seeds nor a prefill shared by n samples, hence a loop of our own on
forward.py, so that what is sampled comes from the body and the output layer that training sees.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.batches import Head, PromptBatch
from vlm_distill.forward import CachedPrefix, forward_prompts
from vlm_distill.generation.engine import Sampling
from vlm_distill.generation.growing_cache import grow_in_place
from vlm_distill.generation.sampling import choose_tokens
from vlm_distill.records import Finish

FINISHES: tuple[Finish, ...] = ("stop", "length", "aborted")
STOP, LENGTH, ABORTED = range(3)

# Tells which rows end in a stop string, given their last tokens.
EndsInStop = Callable[[Int[Tensor, "live tail"]], Bool[Tensor, " live"]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """What was decoded: row r has `num_tokens[r]` valid entries, `finish[r]` indexes FINISHES."""

    token_ids: Int[Tensor, "row step"]
    log_probs: Float[Tensor, "row step"]
    num_tokens: Int[Tensor, " row"]
    finish: Int[Tensor, " row"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` into eval mode, and exactly the modules that were training back afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def own_suppressed_ids(loaded: LoadedModel) -> list[int]:
    """Return the ids that are never chosen: placeholders of images, and the model's own `suppress_tokens`.

    A generated placeholder would have no image behind it, and no model could be trained on such a response.
    """
    generation: Any = getattr(loaded.model, "generation_config", None)
    suppressed = getattr(generation, "suppress_tokens", None) or []
    return sorted({*loaded.image_token_ids, *suppressed})


@torch.inference_mode()
def decode_batch(
    loaded: LoadedModel,
    prompts: PromptBatch,
    sampling: Sampling,
    *,
    uniforms: Float[Tensor, "row step"],
    ends_in_stop: EndsInStop | None,
    suppressed_ids: Sequence[int] = (),
) -> Decoded:
    """Return `sampling.num_samples` rows per prompt, prompt-major; the model is expected in eval mode.

    A row whose logits are not finite is aborted. `ends_in_stop` is asked after every token where stop strings
    are given.
    """
    device = prompts.input_ids.device
    decoded = _undecoded(len(prompts.input_ids) * sampling.num_samples, sampling, device)
    uniforms, stop_ids = uniforms.to(device), torch.tensor(loaded.stop_ids, device=device)
    rows = torch.arange(len(decoded.finish), device=device)  # the rows still in the batch
    logits, prefix = _prefill(loaded, prompts, prompt_of_row=rows // sampling.num_samples)
    never = torch.tensor([*own_suppressed_ids(loaded), *suppressed_ids], dtype=torch.long, device=device)
    never = never[never < logits.shape[1]]
    for step in range(sampling.max_new_tokens):
        chosen = choose_tokens(logits.index_fill(1, never, -torch.inf), uniforms[rows, step], sampling)
        log_probs = _log_probs(logits, chosen)
        decoded.token_ids[rows, step], decoded.log_probs[rows, step] = chosen, log_probs
        aborted, stopped = ~log_probs.isfinite(), torch.isin(chosen, stop_ids)
        if ends_in_stop is not None:
            stopped |= ends_in_stop(decoded.token_ids[rows, : step + 1])
        decoded.num_tokens[rows] = torch.where(aborted, step, step + 1)
        decoded.finish[rows] = torch.where(aborted, ABORTED, torch.where(stopped, STOP, LENGTH))
        ended = aborted | stopped
        if step + 1 == sampling.max_new_tokens or ended.all():
            break
        if ended.any():
            # Taking rows out at once copies the cache; what it saves in every later step is more.
            live = (~ended).nonzero()[:, 0]
            rows, chosen = rows[live], chosen[live]
            prefix.select(live)
        logits = _logits(loaded.head, prefix.extend(chosen[:, None]))  # [live] tokens as [live, 1]
    return decoded


def _undecoded(num_rows: int, sampling: Sampling, device: torch.device) -> Decoded:
    shape = (num_rows, sampling.max_new_tokens)
    return Decoded(
        token_ids=torch.zeros(shape, dtype=torch.long, device=device),
        log_probs=torch.zeros(shape, device=device),
        num_tokens=torch.zeros(num_rows, dtype=torch.long, device=device),
        finish=torch.full((num_rows,), LENGTH, device=device),
    )


def _prefill(
    loaded: LoadedModel, prompts: PromptBatch, *, prompt_of_row: Int[Tensor, " row"]
) -> tuple[Float[Tensor, "row vocab"], CachedPrefix]:
    """Return, per row, the logits of its first token, and what continues it.

    Every prompt is forwarded once, however many rows continue it.
    """
    hidden, prefix = forward_prompts(loaded, prompts)
    prefix.select(prompt_of_row)
    grow_in_place(prefix.cache)
    return _logits(loaded.head, hidden)[prompt_of_row], prefix


def _logits(head: Head, hidden: Float[Tensor, "live t width"]) -> Float[Tensor, "live vocab"]:
    """Return the logits of the token after the last one, beside the hidden states."""
    return head.logits(hidden[:, -1:])[:, 0].to(hidden.device)


def _log_probs(logits: Float[Tensor, "live vocab"], chosen: Int[Tensor, " live"]) -> Float[Tensor, " live"]:
    logits = logits.float()
    return logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(dim=-1)
