"""Tiny families train alike in one process and in two, where pictures come before one and not the other.

    python -m tests.distributed.families [NAME ...]

Prints a line a family and ends with 1 where one does not: its losses or gradients differ, or its processes
end or wait for each other. Default: every family that is not refused.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from threading import Timer

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.distributed.family_jobs import DONE, be_quiet, take_steps
from tests.distributed.torchrun import start
from tests.families.every import FAMILIES, load_family
from tests.families.expected import REFUSED_BY
from vlm_distill.conformance.checks import names_for
from vlm_distill.conformance.probes import probe_of
from vlm_distill.errors import one_line

JOBS = "tests.distributed.family_jobs"
SECONDS = 60.0
"""How long two processes may take for a family, their start included, after one has done it."""


def compared(names: list[str], folder: Path) -> Iterator[tuple[str, str]]:
    """Return each family with how its two processes differ from one, empty where they do not.

    Where a family ends the processes, others go on with the next.
    """
    left = list(names)
    while left:
        with start(JOBS, folder, *left) as pair:
            try:
                wrong = ""
                while left and not wrong:
                    name = left.pop(0)
                    yield name, (wrong := compare(name, folder, pair))
            finally:
                pair.terminate()


def compare(name: str, folder: Path, pair: Popen[str]) -> str:
    """Return how the two processes differ from this one, empty where they do not."""
    try:
        expected = take_steps(name, folder / "alone")
    # Whatever a family's code raises is what is wrong with it.
    except Exception as error:
        return f"one process fails: {type(error).__name__}: {one_line(error)}"
    return wait(name, pair) or difference(load_file(folder / f"{name}.safetensors"), expected)


def wait(name: str, pair: Popen[str]) -> str:
    """Wait until two processes have done a family; return what they said last where they have not."""
    assert pair.stdout is not None
    said: list[str] = []
    timer = Timer(SECONDS, pair.terminate)
    timer.start()
    began = time.monotonic()
    for line in pair.stdout:
        if line.strip() == f"{DONE}{name}":
            timer.cancel()
            return ""
        said.append(line.strip())
    timer.cancel()
    if time.monotonic() - began > SECONDS:
        return f"its processes wait for each other: not done after {SECONDS:.0f} s"
    errors = [line for line in said if "Error" in line and "ChildFailed" not in line]
    return f"its processes ended: {(errors or said or ['silently'])[0]}"


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    """Return where losses or gradients differ by more than rounding, empty where nothing does."""
    if other := sorted(found.keys() ^ expected.keys()):
        where = "one process" if other[0] in expected else "two processes"
        return f"{len(other)} gradients only in {where}: {other[0]}"
    sizes = {key: float(value.norm()) ** 2 for key, value in expected.items() if not is_loss(key)}
    for key, value in expected.items():
        step = " ".join(key.split(" ")[:2])
        size = sum(square for other, square in sizes.items() if other.startswith(f"{step} ")) ** 0.5
        # As in test_training_equality.py, of which these are single-precision cases.
        allowed = 1e-5 * abs(float(value)) if is_loss(key) else 2e-6 * size
        distance = float((found[key] - value).norm())
        if not distance <= allowed:
            return f"{key}: {distance:.1e} apart, expected at most {allowed:.1e}"
    return ""


def is_loss(key: str) -> bool:
    return key.endswith(" loss")


def needs_pictures(name: str) -> bool:
    """Return whether a family reads no prompt without a picture, so that each process has one everywhere."""
    loaded = load_family(name)
    return "vision" in loaded.adapter.parts and 0 not in probe_of(loaded).num_pictures


def is_refused(name: str) -> bool:
    """Return whether a family fails a check without which it is not trained."""
    return REFUSED_BY.get(name) in {"load", *names_for(["learns"])}


def main(names: list[str]) -> int:
    be_quiet()
    torch.set_num_threads(1)
    asked = names or [*FAMILIES]
    refused = [name for name in asked if is_refused(name)]
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for name, line in compared([name for name in asked if name not in refused], Path(folder)):
            note = " (it reads no prompt without a picture)" if not line and needs_pictures(name) else ""
            print(f"{name}: {line or 'the same'}{note}", flush=True)
            wrong += [name] if line else []
    print(f"refused, so not trained: {', '.join(refused) or 'none'}")
    print(f"not the same in two processes: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
