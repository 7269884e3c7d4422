"""Jobs of several real processes on this machine, as a user would launch them."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """How a job ended; `exit_codes` are those of the processes when one of them failed, by rank."""

    returncode: int
    output: str
    seconds: float

    @property
    def exit_codes(self) -> dict[int, int]:
        lines = [line.split() for line in self.output.splitlines()]
        ranks = [int(words[2]) for words in lines if words[:2] == ["rank", ":"]]
        codes = [int(words[2]) for words in lines if words[:2] == ["exitcode", ":"]]
        return dict(zip(ranks, codes, strict=True))


def start(*arguments: object, num_processes: int = 2) -> subprocess.Popen[str]:
    """Start `python -m ARGUMENTS` in several processes that find each other at a free port."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*launcher, f"--nproc_per_node={num_processes}", "-m", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def torchrun(*arguments: object, num_processes: int = 2, timeout: float = 200) -> Job:
    """Run `python -m ARGUMENTS` in several processes to the end."""
    began = time.monotonic()
    with start(*arguments, num_processes=num_processes) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            # The launcher ends its processes on SIGTERM and not when it is killed.
            process.terminate()
            raise
    return Job(returncode=process.returncode, output=output, seconds=time.monotonic() - began)
