"""What a check found, and how near two computations of the same numbers must be: the tolerances stand here.

Both are multiples of the rounding unit (eps) of the model's dtype, so that a bfloat16 model is judged as
bfloat16 can be judged. Wrong positions, masks or scales miss them by orders of magnitude in float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

VALUE_UNITS = 64
"""Values agree within this many eps, relative to the largest one."""
GRADIENT_UNITS = 1024
"""Gradients of a parameter agree within this many eps, relative to its largest one (see FLOOR)."""
OWN_DIFFERENCE = 2e-3
"""Two ways of transformers itself may differ by so much; above it, one of them is wrong."""
FLOOR = 0.01
"""A parameter without effect (a key bias) has rounding for a gradient: it is held to this share of all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The result of one check on one model.

    `line` says what was expected and what was found where it failed, and why where it does not apply. `error`
    is the largest measured difference, relative to the largest expected number; None where none is measured.
    """

    outcome: Literal["passed", "failed", "does not apply"]
    line: str = ""
    error: float | None = None


def passed() -> Finding:
    return Finding(outcome="passed")


def failed(line: str) -> Finding:
    return Finding(outcome="failed", line=line)


def does_not_apply(line: str) -> Finding:
    return Finding(outcome="does not apply", line=line)


def compare_values(
    what: str, found: Float[Tensor, "..."], expected: Float[Tensor, "..."], *, slack: float = 1.0
) -> Finding:
    """Compare within VALUE_UNITS of the coarser dtype, `slack` times as much; `what` names both sides."""
    if found.shape != expected.shape:
        return failed(f"{what}: expected shape {list(expected.shape)}, got {list(found.shape)}")
    return _judge(what, difference(found, expected), slack * VALUE_UNITS * _eps(found, expected))


def difference(found: Float[Tensor, "..."], expected: Float[Tensor, "..."]) -> float:
    """Return the largest difference, relative to the largest expected number."""
    largest = expected.detach().abs().max().double()
    return float((found.detach().double() - expected.detach().double()).abs().max() / largest)


def compare_gradients(
    what: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, slack: float = 1.0
) -> Finding:
    """Compare within GRADIENT_UNITS; a parameter that only one side reaches has zeros on the other."""
    largest = max(float(value.abs().max()) for value in expected.values())
    errors = {}
    for name in {**expected, **found}:
        some = expected[name] if name in expected else found[name]
        ours, theirs = (side.get(name, torch.zeros_like(some)) for side in (found, expected))
        scale = float(theirs.abs().max()) + FLOOR * largest
        errors[name] = float((ours - theirs).abs().max()) / scale
    # Not a number compares with nothing: it must not hide behind the others.
    worst = max(errors, key=lambda name: float("inf") if errors[name] != errors[name] else errors[name])
    tolerance = slack * GRADIENT_UNITS * _eps(*expected.values())
    return _judge(f"{what}, gradient of {worst}", errors[worst], tolerance)


def _judge(what: str, error: float, tolerance: float) -> Finding:
    if error <= tolerance:
        return Finding(outcome="passed", error=error)
    line = f"{what}: expected a relative difference of at most {tolerance:.1e}, got {error:.1e}"
    return Finding(outcome="failed", line=line, error=error)


def _eps(*tensors: Tensor) -> float:
    return max(torch.finfo(tensor.dtype).eps for tensor in tensors)
