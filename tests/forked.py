"""`vlm-distill` in processes that start in a moment: forks of one that has imported everything.

A run that is interrupted ten times would import torch ten times. Each fork is a process of its own, in a
session of its own, with the whole command line in its main thread.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_distill.cli import program

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = (
    "vlm_distill.reporting",
    "vlm_distill.runs.pipeline",
    *(f"transformers.models.{name}.modeling_{name}" for name in ("clip", "llama", "llava")),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """The processes of one command, by rank, and where each one prints."""

    pids: Sequence[int]
    logs: Sequence[Path]
    forks: "Forks"

    def send(self, number: signal.Signals, *, ranks: Sequence[int] | None = None) -> None:
        for rank in range(len(self.pids)) if ranks is None else ranks:
            os.kill(self.pids[rank], number)

    def is_running(self) -> bool:
        """Say whether none of the processes has ended; one that has is not reaped yet."""
        return not any(self.forks.ask("ended", pid) for pid in self.pids)

    def wait(self) -> list[int]:
        """Return the exit codes of all processes, negative for a signal that has ended one."""
        return [self.forks.ask("wait", pid) for pid in self.pids]

    @property
    def output(self) -> str:
        # A process that has just been started has none yet.
        return "".join(path.read_text() for path in self.logs if path.exists())


@dataclass(frozen=True, kw_only=True, slots=True)
class Forks:
    """The process that forks, and how it is asked."""

    server: "subprocess.Popen[str]"

    def ask(self, what: str, argument: Any) -> Any:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps([what, argument]), file=self.server.stdin, flush=True)
        return json.loads(self.server.stdout.readline())

    def start(self, folder: Path, *arguments: str, num_processes: int = 1) -> Job:
        """Start `vlm-distill ARGUMENTS` in `folder`, in several processes as a launcher does."""
        logs = [folder / f"{rank}.log" for rank in range(num_processes)]
        common = {} if num_processes == 1 else _rendezvous(num_processes)
        pids = []
        for rank, log in enumerate(logs):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if common else {}
            asked = {"arguments": arguments, "log": str(log), "folder": str(folder)}
            pids.append(self.ask("start", {**asked, "environment": common | own}))
        return Job(pids=pids, logs=logs, forks=self)


def _rendezvous(num_processes: int) -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    size = str(num_processes)
    return {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


@contextmanager
def forks() -> Iterator[Forks]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.forked"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            yield Forks(server=server)
        finally:
            assert server.stdin is not None
            server.stdin.close()


def serve() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    running: set[int] = set()
    for line in sys.stdin:
        what, argument = json.loads(line)
        if what == "start":
            pid = os.fork()
            if pid == 0:
                become(**argument)
            running.add(pid)
            print(pid, flush=True)
        elif what == "ended":
            found = os.waitid(os.P_PID, argument, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            print(json.dumps(found is not None), flush=True)
        else:
            _, status = os.waitpid(argument, 0)
            running.remove(argument)
            print(os.waitstatus_to_exitcode(status), flush=True)
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def become(*, arguments: Sequence[str], log: str, folder: str, environment: dict[str, str]) -> None:
    """Make this fork the command."""
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(written, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["vlm-distill", *arguments]
    program()


if __name__ == "__main__":
    serve()
