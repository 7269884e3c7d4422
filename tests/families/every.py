"""All tiny families by name, and what is found about one of them as it is used: with measured facts."""

import time
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.utils import logging

from tests.families import (
    llava_like,
    llava_own_parts,
    muse_and_inkling,
    other_image_text,
    packed_like,
    qwen_like,
    recent_image_text,
    seen_both_ways,
    text,
)
from tests.families.build import Build
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.catalog import find_adapter
from vlm_distill.conformance.checks import CHECKS, examine
from vlm_distill.conformance.facts import Facts, measure
from vlm_distill.conformance.findings import Finding, failed
from vlm_distill.errors import AdapterError
from vlm_distill.models.load import wrap_model

IMAGE_TEXT: dict[str, Build] = {
    **llava_like.FAMILIES,
    **llava_own_parts.FAMILIES,
    **muse_and_inkling.FAMILIES,
    **other_image_text.FAMILIES,
    **packed_like.FAMILIES,
    **qwen_like.FAMILIES,
    **recent_image_text.FAMILIES,
    **seen_both_ways.FAMILIES,
}
TEXT: dict[str, Build] = {**text.FAMILIES, **text.DEVIANT}
FAMILIES = {**IMAGE_TEXT, **TEXT}


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is found about a family; `failed` are its failed checks, with their lines."""

    findings: dict[str, Finding]
    adapter: str = ""
    is_generic: bool = True
    facts: Facts | None = None

    def is_expected(self, refused_by: str | None) -> bool:
        """Return whether it is right, or refused by the named check among others."""
        return refused_by in self.failed if refused_by else not self.failed

    @property
    def failed(self) -> dict[str, str]:
        return {name: one.line for name, one in self.findings.items() if one.outcome == "failed"}


def load_family(name: str) -> LoadedModel:
    model, processor = FAMILIES[name]()
    config: Any = model.config
    return wrap_model(find_adapter(config.model_type), model, processor, path=name)


def look_at(name: str, *, checks: tuple[str, ...] = tuple(CHECKS)) -> Found:
    """Return what the checks find; a family that is refused by what it is fails `load`."""
    try:
        loaded = load_family(name)
    except AdapterError as error:
        return Found(findings={"load": failed(str(error))})
    facts = measure(loaded)
    adapter = loaded.adapter
    return Found(
        adapter=adapter.name,
        is_generic=not adapter.model_types,
        facts=facts,
        findings=examine(replace(loaded, adapter=facts.settled(adapter)), checks),
    )


def look_at_quietly(name: str) -> tuple[str, Found, float]:
    """Return the same with the name and the seconds that it took, for a process of its own."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    began = time.monotonic()
    return name, look_at(name), time.monotonic() - began
