"""Checks of the hidden states that forward.py gives: as logits, against the model's own and among each other.

Values are compared in logits (hidden states through the adapter's head), gradients of all parameters through
a weighted sum of their squares, in which a row that lands on another's place shows. Of a large vocabulary
some columns are compared: a wrong hidden state shows in all of them.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.batches import PromptBatch, ResponseBatch
from vlm_distill.conformance.findings import (
    Finding,
    compare_gradients,
    compare_values,
    does_not_apply,
    failed,
)
from vlm_distill.conformance.oracle import all_plain_logits, judged, keeping, own_inputs
from vlm_distill.conformance.probes import Probe, response_batch
from vlm_distill.forward import (
    prefix_shared_hidden,
    prompt_hidden,
    shares_prefixes,
    tree_attention_hidden,
    unshared_hidden,
)

MOST_COLUMNS = 4096
LAST = 4
"""On so many places of a prompt the output layer is compared with the model's own logits."""
Forward = Callable[[LoadedModel, PromptBatch, ResponseBatch], Float[Tensor, "row width"]]
Logits = Callable[[Probe], Float[Tensor, "row column"]]
Result = tuple[Float[Tensor, "row column"], dict[str, Tensor]]


@torch.no_grad()
def head(probe: Probe) -> Finding:
    """The adapter's head gives the model's own logits, from the hidden states of its body."""
    hidden, expected = own_head(probe)
    return compare_values("the head's logits against the model's", probe.loaded.head.logits(hidden), expected)


def own_head(probe: Probe) -> tuple[Float[Tensor, "1 t width"], Float[Tensor, "1 t vocab"]]:
    """Return the last hidden states of the first prompt after the final norm, and the model's logits."""
    model: Any = probe.loaded.model
    alone = probe.loaded.encode(probe.examples[:1], [probe.load_pictures(probe.examples[0])])
    hidden = prompt_hidden(probe.loaded, alone.to(probe.loaded.device))
    logits: Tensor = model(**own_inputs(probe, 0), **keeping(model, LAST)).logits
    return hidden[:, -LAST:], logits[:, -LAST:]


@torch.no_grad()
def generated(probe: Probe) -> Finding:
    """Separate forwards give the logits of `generate` that is made to answer with the same tokens."""
    own = judged(probe)
    expected = some_columns(probe, own.logits)
    return compare_values("separate forwards against generate", separate(probe), expected, slack=own.slack)


def plain(probe: Probe) -> Finding:
    """Separate forwards give logits and gradients of the model's own forward without padding or batch."""
    expected = with_gradients(probe, lambda one: some_columns(one, all_plain_logits(one, one.pairs)))
    what = "separate forwards against the model's own"
    return compare_results(what, separate_results(probe), expected, slack=judged(probe).slack)


def prefix_shared(probe: Probe) -> Finding:
    """Responses that continue the cache of their prompt give logits and gradients of separate forwards."""
    if not shares_prefixes(probe.loaded):
        return does_not_apply("the family shares no prefixes")
    found = with_gradients(probe, forward_logits(prefix_shared_hidden))
    what = "a shared cache against separate forwards"
    return compare_results(what, found, separate_results(probe), slack=judged(probe).slack)


def one_sequence(probe: Probe) -> Finding:
    """Responses behind each other under a block mask give logits and gradients of separate forwards."""
    if not shares_prefixes(probe.loaded, in_one_forward=True):
        return does_not_apply("the family takes no mask of queries by keys")
    found = with_gradients(probe, forward_logits(tree_attention_hidden))
    what = "one sequence against separate forwards"
    return compare_results(what, found, separate_results(probe), slack=judged(probe).slack)


@torch.no_grad()
def forgetful(probe: Probe) -> Finding:
    """What the model's own `generate` remembers, of one prompt or another, changes no bit of a forward."""
    results = []
    for pair in (probe.pairs[0], probe.pairs[1]):
        model: Any = probe.loaded.model
        model.generate(
            **own_inputs(probe, pair[0]),
            max_new_tokens=2,
            do_sample=False,
            pad_token_id=probe.loaded.stop_ids[0],
        )
        results.append(forward_logits(unshared_hidden)(probe.few))
    finding = compare_values("a forward after generate for another prompt", *results)
    if torch.equal(*results) or finding.outcome == "failed":
        return finding
    return failed("a forward after generate for another prompt: expected the same bits, got others")


def separate(probe: Probe) -> Float[Tensor, "row column"]:
    """Return the logits of separate forwards, without a graph."""
    with torch.no_grad():
        return logits_of(probe, separate_hidden(probe))


def separate_hidden(probe: Probe) -> Float[Tensor, "row width"]:
    """Return the hidden states of separate forwards, without a graph."""
    responses = response_batch(probe, probe.pairs)
    with torch.no_grad():
        return probe.remembered("separate", lambda: unshared_hidden(probe.loaded, probe.prompts, responses))


def separate_results(probe: Probe) -> Result:
    """Return logits and gradients of separate forwards."""
    return probe.remembered(
        "separate results", lambda: with_gradients(probe, forward_logits(unshared_hidden))
    )


def forward_logits(forward: Forward) -> Logits:
    """Return a function from a probe to the logits of its responses through `forward`."""

    def logits(probe: Probe) -> Float[Tensor, "row column"]:
        responses = response_batch(probe, probe.pairs)
        return logits_of(probe, forward(probe.loaded, probe.prompts, responses))

    return logits


def logits_of(probe: Probe, hidden: Float[Tensor, "row width"]) -> Float[Tensor, "row column"]:
    """Return the logits of the columns that are compared."""
    head = probe.loaded.head
    chosen = columns(probe)
    if chosen is None:
        return head.logits(hidden)
    bias = None if head.bias is None else head.bias[chosen]
    return replace(head, weight=head.weight[chosen], bias=bias).logits(hidden)


def some_columns(probe: Probe, logits: Float[Tensor, "row vocab"]) -> Float[Tensor, "row column"]:
    chosen = columns(probe)
    return logits if chosen is None else logits[:, chosen]


def columns(probe: Probe) -> Int[Tensor, " column"] | None:
    """Return the ids whose logits are compared, spread over the vocabulary; None for all."""
    weight = probe.loaded.head.weight
    step = -(-len(weight) // MOST_COLUMNS)
    return None if step == 1 else torch.arange(0, len(weight), step, device=weight.device)


def with_gradients(probe: Probe, logits_of: Logits) -> Result:
    """Return logits and the gradient of every parameter that they depend on, by name; none is accumulated."""
    learning = {name: p for name, p in probe.loaded.model.named_parameters() if p.requires_grad}
    logits = logits_of(probe)
    if not logits.requires_grad:
        # Nothing that learns was reached: a picture as tokens of a codebook has no gradient.
        return logits, {}
    gradients = torch.autograd.grad(weighted_square(logits), list(learning.values()), allow_unused=True)
    found = zip(learning, gradients, strict=True)
    return logits.detach(), {name: gradient for name, gradient in found if gradient is not None}


def weighted_square(logits: Float[Tensor, "row column"]) -> Float[Tensor, ""]:
    """Return a loss to which every logit contributes with a weight of its own."""
    weights = torch.linspace(1, 2, logits.numel(), device=logits.device, dtype=logits.dtype)
    return (logits * weights.view_as(logits)).square().mean()


def compare_results(what: str, found: Result, expected: Result, *, slack: float = 1.0) -> Finding:
    """Compare logits, then gradients; the finding is the first that failed, else that of the gradients."""
    values = compare_values(what, found[0], expected[0], slack=slack)
    if values.outcome == "failed":
        return values
    return compare_gradients(what, found[1], expected[1], slack=slack)
