"""All checks of a model family, by name, and how they are made on one model.

A check compares what an adapter gives with what transformers alone says (oracle.py), or one way through this
package with another that must give the same. Its docstring says what is compared: ids and names exactly,
logits and log-probabilities within VALUE_UNITS, gradients within GRADIENT_UNITS (findings.py).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.foreign import blame
from vlm_distill.conformance import (
    batching,
    cached_rows,
    learning,
    logits,
    positions,
    prompts,
    sampling,
    saving,
    token_extras,
    training,
)
from vlm_distill.conformance.findings import Finding, failed
from vlm_distill.conformance.probes import Probe, probe_of

Use: TypeAlias = Literal["answers", "caches", "learns", "recomputes", "lora", "vision_cache", "saves"]
"""What a run does with a model: as a teacher or in an evaluation it answers, a student learns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A claim about a family, the uses that need it, and what to do where it fails."""

    run: Callable[[Probe], Finding]
    needed_for: frozenset[Use]
    remedy: str


_ENCODE = "write an `encode` that gives the ids of the model's own processor"
_FORWARD = (
    "give the adapter `position_ids` that begin where the class's own do, else a `backbone` that forwards as "
    "the class does"
)


def _for(*uses: Use) -> frozenset[Use]:
    return frozenset(uses)


CHECKS = {
    "parts": Check(
        run=prompts.parts,
        needed_for=_for("learns", "lora", "vision_cache"),
        remedy="correct the prefixes in the adapter's `parts`: every parameter in one, none empty",
    ),
    "prompt_ids": Check(run=prompts.prompt_ids, needed_for=_for("answers", "learns"), remedy=_ENCODE),
    "untruncated": Check(
        run=prompts.untruncated,
        needed_for=_for("answers", "learns"),
        remedy="the adapter's `encode` must never truncate",
    ),
    "placeholders": Check(
        run=prompts.placeholders,
        needed_for=_for("answers", "learns"),
        remedy="config.json's `image_token_id` must be the id that stands for picture features",
    ),
    "head": Check(
        run=logits.head,
        needed_for=_for("answers", "learns"),
        remedy="logits are no linear function of the last hidden states, with the config's scale or without: "
        "give the adapter a `head`, or choose another model",
    ),
    "positions": Check(
        run=positions.positions,
        needed_for=_for("answers", "learns"),
        remedy="give the adapter a `position_ids` that returns what the model's own forward computes (its "
        "get_rope_index, where it has one)",
    ),
    "token_extras": Check(
        run=token_extras.token_extras,
        needed_for=_for("answers", "learns"),
        remedy="these values are per token: the adapter's `encode` must pass them on",
    ),
    "generated": Check(run=logits.generated, needed_for=_for("answers", "learns"), remedy=_FORWARD),
    "plain": Check(run=logits.plain, needed_for=_for("learns"), remedy=_FORWARD),
    "boundary": Check(
        run=batching.boundary,
        needed_for=_for("answers", "learns"),
        remedy="the last token of a prompt predicts the first of a response: padding stands left of prompts",
    ),
    "causal": Check(
        run=batching.causal,
        needed_for=_for("answers", "learns"),
        remedy="the model sees later tokens, so it cannot be trained to predict them; choose a causal one",
    ),
    "padding": Check(
        run=batching.padding,
        needed_for=_for("answers", "learns"),
        remedy="padding must be masked and not counted in positions; a state that reads it cannot be batched",
    ),
    "alone": Check(
        run=batching.alone,
        needed_for=_for("answers", "learns"),
        remedy="`extra_counts` must say how many rows of each extra tensor belong to each prompt",
    ),
    "mixed": Check(
        run=batching.mixed,
        needed_for=_for("answers", "learns"),
        remedy="a prompt's tensors must not depend on the pictures of the prompts beside it",
    ),
    "pictures": Check(
        run=batching.pictures,
        needed_for=_for("answers", "learns"),
        remedy="the pictures of each prompt must reach the model, in the order of the prompts",
    ),
    "forgetful": Check(
        run=logits.forgetful,
        needed_for=_for("answers", "learns"),
        remedy="the model keeps state between calls: compute it in the adapter's `position_ids`",
    ),
    "prefix_shared": Check(
        run=logits.prefix_shared,
        needed_for=_for("learns"),
        remedy="set `supports_prefix_sharing=False` in the adapter: separate forwards are used",
    ),
    "one_sequence": Check(
        run=logits.one_sequence,
        needed_for=_for("learns"),
        remedy="set `supports_one_sequence=False` in the adapter: separate forwards are used",
    ),
    "greedy": Check(run=sampling.greedy, needed_for=_for("answers", "learns"), remedy=_FORWARD),
    "sampled": Check(run=sampling.sampled, needed_for=_for("answers", "learns"), remedy=_FORWARD),
    "trained": Check(run=sampling.trained, needed_for=_for("learns"), remedy=_FORWARD),
    "cached_rows": Check(
        run=cached_rows.cached_rows,
        needed_for=_for("caches"),
        remedy="leave `cache` out: what is stored of this teacher is not what it says live",
    ),
    "learning": Check(
        run=learning.learning,
        needed_for=_for("learns"),
        remedy="the adapter's `backbone` must keep the graph, and `parts` name each parameter's component",
    ),
    "checkpointing": Check(
        run=training.checkpointing,
        needed_for=_for("recomputes"),
        remedy="set `train.gradient_checkpointing` to false",
    ),
    "vision_cache": Check(
        run=training.vision_cache,
        needed_for=_for("vision_cache"),
        remedy="set `vision_cache: {memory_gib: 0, disk_gib: 0}`",
    ),
    "lora": Check(
        run=training.lora,
        needed_for=_for("lora"),
        remedy="set `trainable` of the component to full or frozen",
    ),
    "saved": Check(
        run=saving.saved,
        needed_for=_for("saves"),
        remedy="correct the adapter's `state_dict_names`, or save with the transformers that wrote the model",
    ),
}


def examine(loaded: LoadedModel, names: Iterable[str] = tuple(CHECKS)) -> dict[str, Finding]:
    """Return what the named checks find on a model, which is left as it is."""
    probe = probe_of(loaded)
    return {name: find(CHECKS[name], probe) for name in names}


def find(check: Check, probe: Probe) -> Finding:
    """Return what a check finds, whatever the family's code raises included."""
    try:
        return check.run(probe)
    # Whatever a family's code raises is what was found about it.
    except Exception as error:
        return failed(blame(error))


def names_for(uses: Iterable[Use]) -> list[str]:
    """Return the checks that any of the uses needs, in their order."""
    wanted = {*uses}
    return [name for name, check in CHECKS.items() if check.needed_for & wanted]
