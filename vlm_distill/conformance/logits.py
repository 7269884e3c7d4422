"""Checks of the hidden states that forward.py gives: as logits, against the model's own and among each other.

Values are compared in logits (hidden states through the adapter's head), gradients of all parameters through
a weighted sum of their squares, in which a row that lands on another's place shows.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.head import output_layer
from vlm_distill.batches import PromptBatch, ResponseBatch
from vlm_distill.conformance.findings import (
    Finding,
    compare_gradients,
    compare_values,
    does_not_apply,
    failed,
)
from vlm_distill.conformance.oracle import all_forced_logits, all_plain_logits, own_inputs
from vlm_distill.conformance.probes import Probe, response_batch
from vlm_distill.forward import (
    prefix_shared_hidden,
    shares_prefixes,
    tree_attention_hidden,
    unshared_hidden,
)

Forward = Callable[[LoadedModel, PromptBatch, ResponseBatch], Float[Tensor, "row width"]]
Logits = Callable[[Probe], Float[Tensor, "row vocab"]]
Result = tuple[Float[Tensor, "row vocab"], dict[str, Tensor]]


def head(probe: Probe) -> Finding:
    """The adapter's head gives the model's own logits, from what the model hands to its output layer."""
    seen: list[Tensor] = []
    model: Any = probe.loaded.model
    layer = output_layer(model)
    with layer.register_forward_pre_hook(lambda _, args: seen.append(args[0])), torch.no_grad():
        expected = model(**own_inputs(probe, 0)).logits
    return compare_values(
        "the head's logits against the model's", probe.loaded.head.logits(seen[-1]), expected
    )


@torch.no_grad()
def generated(probe: Probe) -> Finding:
    """Separate forwards give the logits of `generate` that is made to answer with the same tokens."""
    found = forward_logits(unshared_hidden)(probe)
    return compare_values("separate forwards against generate", found, all_forced_logits(probe, probe.pairs))


def plain(probe: Probe) -> Finding:
    """Separate forwards give logits and gradients of the model's own forward without padding or batch."""
    expected = with_gradients(probe, lambda one: all_plain_logits(one, one.pairs))
    found = with_gradients(probe, forward_logits(unshared_hidden))
    return compare_results("separate forwards against the model's own", found, expected)


def prefix_shared(probe: Probe) -> Finding:
    """Responses that continue the cache of their prompt give logits and gradients of separate forwards."""
    if not shares_prefixes(probe.loaded):
        return does_not_apply("the family shares no prefixes")
    expected = with_gradients(probe, forward_logits(unshared_hidden))
    found = with_gradients(probe, forward_logits(prefix_shared_hidden))
    return compare_results("a shared cache against separate forwards", found, expected)


def one_sequence(probe: Probe) -> Finding:
    """Responses behind each other under a block mask give logits and gradients of separate forwards."""
    if not shares_prefixes(probe.loaded, in_one_forward=True):
        return does_not_apply("the family takes no mask of queries by keys")
    expected = with_gradients(probe, forward_logits(unshared_hidden))
    found = with_gradients(probe, forward_logits(tree_attention_hidden))
    return compare_results("one sequence against separate forwards", found, expected)


@torch.no_grad()
def padding(probe: Probe) -> Finding:
    """Wider padding, left of the prompts and right of the responses, changes no logit."""
    prompts = probe.prompts
    filler = probe.pairs[0][1][0]
    wide = replace(
        prompts,
        input_ids=torch.nn.functional.pad(prompts.input_ids, (5, 0), value=filler),
        attention_mask=torch.nn.functional.pad(prompts.attention_mask, (5, 0)),
        token_extras={
            name: torch.cat([torch.zeros_like(value[:, :1]).expand(-1, 5, *value.shape[2:]), value], dim=1)
            for name, value in prompts.token_extras.items()
        },
    )
    responses = response_batch(probe, probe.pairs, wider=3)
    found = probe.loaded.head.logits(unshared_hidden(probe.loaded, wide, responses))
    return compare_values("wider padding", found, forward_logits(unshared_hidden)(probe))


@torch.no_grad()
def alone(probe: Probe) -> Finding:
    """Each response alone, to its prompt selected from the batch, has the logits that it has in the batch."""
    loaded, prompts, rows = probe.loaded, probe.prompts, []
    for prompt, ids in probe.pairs:
        selected = prompts.select(torch.tensor([prompt], device=loaded.device))
        rows.append(unshared_hidden(loaded, selected, response_batch(probe, [(0, ids)])))
    found = loaded.head.logits(torch.cat(rows))
    return compare_values("responses alone", found, forward_logits(unshared_hidden)(probe))


@torch.no_grad()
def causal(probe: Probe) -> Finding:
    """Another token in the last place but one of a response changes no logit of it and of those before it."""
    # The last token is forwarded in none of the longest responses.
    other = probe.pairs[0][1][0]
    pairs = [(row, (*ids[:-2], other, ids[-1]) if len(ids) > 1 else ids) for row, ids in probe.pairs]
    before = torch.tensor([token + 1 < len(ids) for _, ids in pairs for token in range(len(ids))])
    found = forward_logits(unshared_hidden)(replace(probe, pairs=tuple(pairs)))[before]
    return compare_values(
        "logits before another token", found, forward_logits(unshared_hidden)(probe)[before]
    )


@torch.no_grad()
def forgetful(probe: Probe) -> Finding:
    """What the model's own `generate` remembers, of one prompt or another, changes no bit of a forward."""
    results = []
    for pair in (probe.pairs[0], probe.pairs[1]):
        all_forced_logits(probe, [pair])
        results.append(forward_logits(unshared_hidden)(probe))
    finding = compare_values("a forward after generate for another prompt", *results)
    if torch.equal(*results) or finding.outcome == "failed":
        return finding
    return failed("a forward after generate for another prompt: expected the same bits, got others")


def forward_logits(forward: Forward) -> Logits:
    """Return a function from a probe to the logits of its responses through `forward`."""

    def logits(probe: Probe) -> Float[Tensor, "row vocab"]:
        responses = response_batch(probe, probe.pairs)
        return probe.loaded.head.logits(forward(probe.loaded, probe.prompts, responses))

    return logits


def with_gradients(probe: Probe, logits_of: Logits) -> Result:
    """Return logits and the gradient of every parameter that they depend on, by name; none is accumulated."""
    learning = {name: p for name, p in probe.loaded.model.named_parameters() if p.requires_grad}
    logits = logits_of(probe)
    gradients = torch.autograd.grad(weighted_square(logits), list(learning.values()), allow_unused=True)
    found = zip(learning, gradients, strict=True)
    return logits.detach(), {name: gradient for name, gradient in found if gradient is not None}


def weighted_square(logits: Float[Tensor, "row vocab"]) -> Float[Tensor, ""]:
    """Return a loss to which every logit contributes with a weight of its own."""
    weights = torch.linspace(1, 2, logits.numel(), device=logits.device, dtype=logits.dtype)
    return (logits * weights.view_as(logits)).square().mean()


def compare_results(what: str, found: Result, expected: Result) -> Finding:
    """Compare logits, then gradients; the finding is the first that failed, else that of the gradients."""
    values = compare_values(what, found[0], expected[0])
    return values if values.outcome == "failed" else compare_gradients(what, found[1], expected[1])
