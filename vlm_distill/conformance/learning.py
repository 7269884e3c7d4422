"""The check of what learns in a distillation step: all that is trainable and reached, and nothing frozen."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from vlm_distill.adapters.adapter import LoadedModel, Part
from vlm_distill.conformance.findings import Finding, failed, passed
from vlm_distill.conformance.logits import forward_logits, some_columns, with_gradients
from vlm_distill.conformance.oracle import all_plain_logits
from vlm_distill.conformance.probes import Probe
from vlm_distill.forward import response_hidden
from vlm_distill.models.lora import part_of
from vlm_distill.training.config import Trainable
from vlm_distill.training.parts import prepare_parts


def learning(probe: Probe) -> Finding:
    """With a component frozen, a step reaches what the model's own forward reaches of the others, no more."""
    pictured = next((row for row, count in enumerate(probe.num_pictures) if count), 0)
    some = replace(probe, pairs=tuple(pair for pair in probe.pairs if pair[0] == pictured))
    parts = probe.loaded.adapter.parts
    reached = {*with_gradients(some, lambda one: some_columns(one, all_plain_logits(one, one.pairs)))[1]}
    # A component that is frozen takes nothing but itself away; where there is one, all of it learns.
    for frozen in parts if len(parts) > 1 else (None,):
        wanted = {name for name in reached if frozen is None or part_of(name, parts) != frozen}
        if not wanted:
            continue  # The rest is reached by no gradient: a tower that gives ids, not features.
        with frozen_part(probe.loaded, frozen):
            found = {*with_gradients(some, forward_logits(response_hidden))[1]}
        if wrong := sorted(found ^ wanted):
            state = f"with {frozen} frozen" if frozen else "with all components learning"
            expected = "a gradient" if wrong[0] in wanted else "none"
            return failed(
                f"gradients {state}: {len(wrong)} parameters differ from the model's own forward; expected "
                f"{expected} for {wrong[0]}"
            )
    return passed()


@contextmanager
def frozen_part(loaded: LoadedModel, part: Part | None) -> Iterator[None]:
    """Freeze a component as training does; afterwards what learns is as before."""
    before = [(parameter, parameter.requires_grad) for parameter in loaded.model.parameters()]
    try:
        prepare_parts(loaded, Trainable.model_validate({part: "frozen"} if part else {}), seed=0)
        for parameter, learned in before:
            parameter.requires_grad_(learned and parameter.requires_grad)
        yield
    finally:
        for parameter, learned in before:
            parameter.requires_grad_(learned)
