"""Where a run comes from: its inputs, and with which versions on which machine each of its steps was made."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from vlm_distill.packages import package_version
from vlm_distill.processes import num_processes
from vlm_distill.state import find_state, write_state

PROVENANCE = "provenance.json"
PACKAGES = (
    "vlm-distill",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "open_clip_torch",
    "datasets",
    "tokenizers",
    "pillow",
    "numpy",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """Versions and machine of one start; None is a package that was not installed."""

    packages: Mapping[str, str | None]
    python: str
    machine: str
    num_processes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Proven:
    """The hash of the verdict on a model's structure, and whether its family has no adapter of its own."""

    verdict: str
    is_generic: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance(Environment):
    """The environment of the last start, the seed, and fingerprints of what the run reads.

    `student` is that before any training. `unreadable_prompts` are left out because a model cannot read them:
    their number in training and held out. `proven` are the teacher and the student at its start. `steps` are
    the environments in which steps were made, by name.
    """

    seed: int
    data: str
    data_counts: Mapping[str, int]
    student: str
    teacher: str | None
    unreadable_prompts: Mapping[str, int] = field(default_factory=dict)
    proven: Mapping[str, Proven] = field(default_factory=dict)
    steps: Mapping[str, Environment] = field(default_factory=dict)
    format_version: Literal[1] = 1


def environment() -> Environment:
    return Environment(
        packages={name: package_version(name) for name in PACKAGES},
        python=platform.python_version(),
        machine=platform.machine(),
        num_processes=num_processes(),
    )


def write_provenance(folder: Path, provenance: Provenance) -> None:
    """Write where a run comes from; what is known of its steps stays."""
    known = find_provenance(folder)
    write_state(folder / PROVENANCE, replace(provenance, steps=known.steps) if known else provenance)


def record_steps(folder: Path, names: Sequence[str]) -> None:
    """Write down that steps were made by this job, whose provenance is written."""
    if not names:
        return
    known = find_provenance(folder)
    assert known is not None
    made = dict.fromkeys(names, environment())
    write_state(folder / PROVENANCE, replace(known, steps={**known.steps, **made}))


def find_provenance(folder: Path) -> Provenance | None:
    """Return where a run comes from, None before its first step; DataError for a damaged file."""
    path = folder / PROVENANCE
    return find_state(Provenance, path, remedy=f"delete {path}, and the next start writes it again")
