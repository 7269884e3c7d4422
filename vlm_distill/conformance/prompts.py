"""Checks of what stands before any forward: encoded prompts, placeholders of images, names of parameters."""

import copy
from dataclasses import replace
from typing import Any

import torch

from vlm_distill.conformance.findings import Finding, does_not_apply, failed, passed
from vlm_distill.conformance.oracle import own_inputs
from vlm_distill.conformance.probes import Probe
from vlm_distill.generation.prompts import unpadded
from vlm_distill.models.lora import part_of

SHORT = 8
"""A length in tokens below that of every prompt with a chat template."""


def prompt_ids(probe: Probe) -> Finding:
    """Each prompt of a batch has the ids that the processor makes of it alone, behind its padding."""
    prompts = probe.prompts
    if (prompts.attention_mask.diff(dim=1) < 0).any():
        return failed("encode: expected padding left of every prompt, found some right of it")
    for row, ids in enumerate(unpadded(prompts)):
        expected = own_inputs(probe, row)["input_ids"][0].tolist()
        if ids != expected:
            return failed(
                f"encode, prompt {row}: expected the {len(expected)} ids that its processor gives, got "
                f"{len(ids)} that differ from place {_first_difference(ids, expected)} on"
            )
    return passed()


def untruncated(probe: Probe) -> Finding:
    """A tokenizer that calls itself shorter than the prompts changes none of them: encode never truncates."""
    processor: Any = copy.deepcopy(probe.loaded.processor)
    tokenizer = getattr(processor, "tokenizer", processor)
    tokenizer.model_max_length = SHORT
    # It would warn of what is asked for here.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    short = replace(probe, loaded=replace(probe.loaded, processor=processor))
    found, expected = (unpadded(one.prompts) for one in (short, probe))
    for row, (ids, whole) in enumerate(zip(found, expected, strict=True)):
        if ids != whole:
            return failed(f"encode, prompt {row}: expected all {len(whole)} tokens, got {len(ids)}")
    return passed()


def placeholders(probe: Probe) -> Finding:
    """A prompt has the placeholders that its processor writes, at least one a picture, and text has none."""
    if "vision" not in probe.loaded.adapter.parts:
        return does_not_apply("the model reads text only")
    known = torch.tensor(probe.loaded.image_token_ids, device=probe.loaded.device)
    for row, num_pictures in enumerate(probe.num_pictures):
        found = int(torch.isin(probe.prompts.input_ids[row], known).sum())
        expected = int(torch.isin(own_inputs(probe, row)["input_ids"], known).sum())
        if found != expected or found < num_pictures or (found > 0) != (num_pictures > 0):
            return failed(
                f"encode, prompt {row}: expected the {expected} placeholders that its processor writes for "
                f"{num_pictures} pictures, got {found} of the ids {probe.loaded.image_token_ids}"
            )
    return passed()


def parts(probe: Probe) -> Finding:
    """Every parameter belongs to a component, and every component has parameters."""
    adapter = probe.loaded.adapter
    # Tied weights by all their names.
    names = [name for name, _ in probe.loaded.model.named_parameters(remove_duplicate=False)]
    owner = {name: part_of(name, adapter.parts) for name in names}
    lost = [name for name, part in owner.items() if part is None]
    empty = sorted(set(adapter.parts) - set(map(str, owner.values())))
    if lost:
        return failed(f"parts: expected a prefix for every parameter, found none for {len(lost)}: {lost[0]}")
    if empty:
        return failed(f"parts: expected parameters of {empty[0]} below {adapter.parts[empty[0]]}, found none")
    return passed()


def _first_difference(ids: list[int], expected: list[int]) -> int:
    pairs = zip(ids, expected, strict=False)
    return next((place for place, pair in enumerate(pairs) if len({*pair}) > 1), min(len(ids), len(expected)))
