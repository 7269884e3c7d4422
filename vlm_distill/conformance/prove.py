"""A model is proven before it is used: its verdict is found or made, and refused where a use needs more."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.foreign import blame
from vlm_distill.conformance.checks import CHECKS, Use, find, names_for
from vlm_distill.conformance.experts import about_experts
from vlm_distill.conformance.facts import Facts, measured
from vlm_distill.conformance.findings import Finding, failed
from vlm_distill.conformance.oracle import judged
from vlm_distill.conformance.probes import Probe, probe_of
from vlm_distill.conformance.random_copy import random_copy
from vlm_distill.conformance.verdict import (
    Verdict,
    Weighed,
    find_verdict,
    find_weighed,
    keep_verdict,
    keep_weighed,
    versions,
)
from vlm_distill.errors import AdapterError
from vlm_distill.generation.decoding import evaluating
from vlm_distill.processes import is_main, on_main
from vlm_distill.progress import Log, silent

WEIGHED = ("head", "generated")
"""The checks that are made on the weights of a model."""
ONE = ((0, 3),)
"""The response on which they are made."""


def prove(loaded: LoadedModel, *, uses: Iterable[Use] = ("answers",), log: Log = silent) -> LoadedModel:
    """Return a model with the adapter that was measured on it, or refuse it.

    Its structure is checked on a small random copy, its weights by one response. What was found is kept in
    the cache of the user.

    Raises:
        AdapterError: a check that one of the uses needs has failed.
    """
    verdict = verdict_on(loaded, uses=tuple(uses), role="model", log=log)
    require(verdict, uses=tuple(uses), path=loaded.path)
    return weighed(settle(loaded, verdict), log=log)


def settle(loaded: LoadedModel, verdict: Verdict) -> LoadedModel:
    """Return a model with its adapter as the verdict has measured it."""
    return replace(loaded, adapter=verdict.facts.settled(loaded.adapter))


def verdict_on(loaded: LoadedModel, *, uses: Sequence[Use], role: str, log: Log = silent) -> Verdict:
    """Return the verdict on a model's structure with the checks for the uses; a skeleton will do.

    What is missing in the one that is kept is made by the main process, while others wait for it.
    """
    return on_main(lambda: _verdict_on(loaded, names_for(uses), role, log))


def _verdict_on(loaded: LoadedModel, names: Sequence[str], role: str, log: Log) -> Verdict:
    known = find_verdict(loaded, log)
    missing = [name for name in names if known is None or name not in known.findings]
    if known is not None and not missing:
        return known
    started = time.monotonic()
    made = examined(loaded, missing, known)
    seconds = time.monotonic() - started
    made = replace(made, seconds=round(made.seconds + seconds, 2))
    keep_verdict(loaded, made, log)
    log(
        f"conformance: {made.model_type} {role} {_outcome(made, names)} in {seconds:.1f} s "
        f"({len(missing)} checks), verdict {made.hash[:12]}"
    )
    return made


def examined(loaded: LoadedModel, names: Iterable[str], known: Verdict | None = None) -> Verdict:
    """Return a verdict with the named checks, made on a random copy, and those of the known one."""
    try:
        copied = random_copy(loaded)
    # Whatever a family's code raises is what was found about it.
    except Exception as error:
        line = f"no small random copy can be built: {blame(error)}"
        return _blank(loaded, findings={name: failed(line) for name in names})
    shared: dict[str, Finding] = {}
    probe = None
    if known is None:
        facts, shared, probe = measured(copied.loaded)
    else:
        facts = known.facts
    settled = facts.settled(copied.loaded.adapter)
    # What it remembers is good for the other checks, unless some way is not used.
    if probe is None or probe.loaded.adapter != settled:
        probe = probe_of(replace(copied.loaded, adapter=settled))
    found = {name: shared[name] if name in shared else find(CHECKS[name], probe) for name in names}
    if known is not None:
        return replace(known, findings={**known.findings, **found})
    return replace(
        _blank(loaded, findings=found),
        facts=facts,
        copied=copied.said,
        judge=_judge(probe),
        notes=about_experts(copied.loaded) | _about_prompts(probe.num_pictures, loaded),
    )


def require(verdict: Verdict, *, uses: Sequence[Use], path: str) -> None:
    """Refuse a model with a failed check that one of the uses needs."""
    for name in names_for(uses):
        _require(name, verdict.findings[name], path)


def weighed(loaded: LoadedModel, *, log: Log = silent) -> LoadedModel:
    """Return a loaded model whose weights give the logits of transformers, or refuse it.

    Each process looks for itself, and the main one writes down what it found.
    """
    found = find_weighed(loaded, log)
    if found is None:
        found = Weighed(model=loaded.path, findings=weigh(loaded))
        if is_main():
            keep_weighed(loaded, found, log)
    for name, finding in found.findings.items():
        _require(name, finding, loaded.path)
    return loaded


@torch.no_grad()
def weigh(loaded: LoadedModel) -> dict[str, Finding]:
    """Return what the weights of a model show in one response to one prompt."""
    with evaluating(loaded.model):
        probe = probe_of(replace(loaded, vision_cache=None), lengths=ONE)
        return {name: find(CHECKS[name], probe) for name in WEIGHED}


def _require(name: str, finding: Finding, path: str) -> None:
    if finding.outcome == "failed":
        raise AdapterError(f"{path}: check {name!r} failed: {finding.line}; {CHECKS[name].remedy}")


def _outcome(verdict: Verdict, names: Sequence[str]) -> str:
    bad = [name for name in names if verdict.findings[name].outcome == "failed"]
    return f"fails {', '.join(bad)}" if bad else "is proven"


def _judge(probe: Probe) -> str:
    try:
        return judged(probe).line
    # As above; the checks that ask the judge say what it was.
    except Exception as error:
        return f"transformers, which fails on it: {blame(error)}"


def _about_prompts(counts: Sequence[int], loaded: LoadedModel) -> dict[str, str]:
    """Return a note on prompts that a family's processor does not read."""
    if "vision" not in loaded.adapter.parts:
        return {}
    missing = [] if 0 in counts else ["none without a picture"]
    missing += [] if max(counts) > 1 else ["none with two pictures"]
    return {"prompts": f"its processor reads {' and '.join(missing)}"} if missing else {}


def _blank(loaded: LoadedModel, findings: Mapping[str, Finding]) -> Verdict:
    model: Any = loaded.model
    adapter = loaded.adapter
    return Verdict(
        model=loaded.path,
        model_type=str(model.config.model_type),
        adapter=adapter.name,
        is_generic=not adapter.model_types,
        packages=versions(),
        copied="nothing",
        judge="transformers",
        facts=Facts(head="adapter", prefix_sharing=False, one_sequence=False, left_padding=True, lines={}),
        notes={},
        findings=findings,
    )
