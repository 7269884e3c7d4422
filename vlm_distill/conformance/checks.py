"""All checks of a model family, by name, and how they are made on one model.

A check compares what an adapter gives with what transformers alone says (oracle.py), or one way through this
package with another that must give the same. Its docstring says what is compared: ids and names exactly,
logits and log-probabilities within VALUE_UNITS, gradients within GRADIENT_UNITS (findings.py).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.conformance import logits, prompts, sampling, saving, training
from vlm_distill.conformance.findings import Finding, failed
from vlm_distill.conformance.probes import Probe, probe_of
from vlm_distill.errors import one_line


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A claim about a family; a `cheap` one copies no weights and forwards without gradients."""

    run: Callable[[Probe], Finding]
    cheap: bool


CHECKS = {
    "parts": Check(run=prompts.parts, cheap=True),
    "prompt_ids": Check(run=prompts.prompt_ids, cheap=True),
    "untruncated": Check(run=prompts.untruncated, cheap=True),
    "placeholders": Check(run=prompts.placeholders, cheap=True),
    "head": Check(run=logits.head, cheap=True),
    "generated": Check(run=logits.generated, cheap=True),
    "plain": Check(run=logits.plain, cheap=False),
    "causal": Check(run=logits.causal, cheap=True),
    "padding": Check(run=logits.padding, cheap=True),
    "alone": Check(run=logits.alone, cheap=True),
    "forgetful": Check(run=logits.forgetful, cheap=False),
    "prefix_shared": Check(run=logits.prefix_shared, cheap=False),
    "one_sequence": Check(run=logits.one_sequence, cheap=False),
    "greedy": Check(run=sampling.greedy, cheap=True),
    "sampled": Check(run=sampling.sampled, cheap=True),
    "trained": Check(run=sampling.trained, cheap=True),
    "checkpointing": Check(run=training.checkpointing, cheap=False),
    "vision_cache": Check(run=training.vision_cache, cheap=False),
    "lora": Check(run=training.lora, cheap=False),
    "saved": Check(run=saving.saved, cheap=False),
}


def examine(loaded: LoadedModel, names: Iterable[str] = tuple(CHECKS)) -> dict[str, Finding]:
    """Return what the named checks find on a model, which is left as it is."""
    probe = probe_of(loaded)
    return {name: _find(CHECKS[name], probe) for name in names}


def _find(check: Check, probe: Probe) -> Finding:
    try:
        return check.run(probe)
    # Whatever a family's code raises is what was found about it.
    except Exception as error:
        return failed(f"{type(error).__name__}: {one_line(error)}")
