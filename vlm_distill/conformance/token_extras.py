"""The check of what a processor says of each token beside its id: token types, masks of pictures."""

import torch
from jaxtyping import Float
from torch import Tensor

from vlm_distill.adapters.foreign import blame
from vlm_distill.conformance.findings import (
    OWN_DIFFERENCE,
    Finding,
    difference,
    does_not_apply,
    failed,
    passed,
)
from vlm_distill.conformance.logits import separate, some_columns
from vlm_distill.conformance.oracle import judged, own_inputs, plain_logits
from vlm_distill.conformance.probes import Probe

KNOWN = ("input_ids", "attention_mask")


@torch.no_grad()
def token_extras(probe: Probe) -> Finding:
    """Separate forwards read every value per token that changes what the model's own forward says."""
    names = sorted({name for row in range(len(probe.examples)) for name in _per_token(probe, row)})
    if not names:
        return does_not_apply("the processor says nothing of a token but its id")
    found, expected = separate(probe), some_columns(probe, judged(probe).plain)
    for name in names:
        without = _plain_without(probe, name)
        if without is None:
            continue  # The model insists on it.
        is_read = difference(without, expected) > OWN_DIFFERENCE
        if is_read and difference(found, without) < difference(found, expected):
            return failed(f"{name}: expected the model to read it for each token, found that it is dropped")
    return passed()


def _per_token(probe: Probe, row: int) -> list[str]:
    """Return the names of the inputs with values for each token; pictures have none of their length."""
    inputs = own_inputs(probe, row)
    shape = inputs["input_ids"].shape
    return [
        name
        for name, value in inputs.items()
        if name not in KNOWN and value.shape[:2] == shape and not value.is_floating_point()
    ]


def _plain_without(probe: Probe, name: str) -> Float[Tensor, "row column"] | None:
    """Return the model's own logits without a value per token, None where it says nothing without."""
    rows = []
    try:
        for row, ids in probe.pairs:
            inputs = {key: value for key, value in own_inputs(probe, row).items() if key != name}
            rows.append(plain_logits(probe.loaded, inputs, ids))
    # Families raise all kinds of errors for what they need and are not given.
    except Exception as error:
        blame(error)
        return None
    return some_columns(probe, torch.cat(rows))
