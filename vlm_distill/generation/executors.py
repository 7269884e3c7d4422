"""Who runs the batches of a job: this process, or the ranks of a launcher, each into a part of its own.

What is generated, stored and resumed is in work.py.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from vlm_distill.errors import DataError
from vlm_distill.processes import num_processes, on_main, rank, wait
from vlm_distill.shards import part_folder

# Indices of examples whose responses are generated together.
Batch = Sequence[int]
# Generates batches and stores them in a folder.
Generate = Callable[[Sequence[Batch], Path], None]


@runtime_checkable
class Executor(Protocol):
    """Has every batch generated once; returns when all are stored in or below `folder`."""

    def __call__(self, batches: Sequence[Batch], generate: Generate, *, folder: Path) -> None: ...


def executor() -> Executor:
    """Return the one for this start: the ranks of a launcher share the work where there are several."""
    return in_this_process if num_processes() == 1 else in_ranks


def in_this_process(batches: Sequence[Batch], generate: Generate, *, folder: Path) -> None:
    generate(batches, folder)


def in_ranks(batches: Sequence[Batch], generate: Generate, *, folder: Path) -> None:
    """Let each process generate every Nth batch into its part; all of them call it with the same batches.

    Raises:
        DataError: the part of a process is not there, because its folder is on another machine.
    """
    generate(batches[rank() :: num_processes()], part_folder(folder, rank()))
    wait()
    on_main(lambda: _require_parts(folder))


def _require_parts(folder: Path) -> None:
    parts = [part_folder(folder, number) for number in range(num_processes())]
    lost = [part.name for part in parts if not part.is_dir()]
    if lost:
        raise DataError(
            f"{folder}: found no responses of process {', '.join(lost)}; "
            "give the run an output folder that all machines share"
        )
