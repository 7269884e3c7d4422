"""Workers under limits of time and memory, and what all their cases showed."""

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from tests.fuzz.case import Problem, Result

ROOT = Path(__file__).resolve().parents[2]
CPU_SECONDS = 20.0
"""What a case may compute: it takes one second."""
IDLE_SECONDS = 15.0
"""How long a case may wait for something."""
MAX_BYTES = 3 * 2**30
STEP = 0.1
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Worker:
    """One process that does cases; it is started when a case asks for it."""

    def __init__(self, material: Path, work: Path) -> None:
        self._material, self._work = material, work
        self._process: subprocess.Popen[str] | None = None

    def do(self, kind: str, seed: str, folder: Path) -> Result:
        """Return what a case came to; one that takes too long ends the process."""
        process = self._started()
        print(json.dumps([kind, seed, str(folder)]), file=process.stdin, flush=True)
        began, reason, codes = time.monotonic(), _over_the_limit(process), []
        if reason is None and (line := _out(process).readline()):
            codes, found = json.loads(line)
            problems = [Problem(**one) for one in found]
        else:
            problems = [self._ended(reason, folder)]
        seconds = time.monotonic() - began
        return Result(kind=kind, seed=seed, codes=tuple(codes), problems=tuple(problems), seconds=seconds)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            temporary = self._work / "temporary"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.worker", str(self._material), str(temporary)],
                cwd=ROOT,
                env={**os.environ, **_environment(self._work)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert _out(self._process).readline() == "ready\n"
        return self._process

    def _ended(self, reason: str | None, folder: Path) -> Problem:
        """End the process; return what it was doing."""
        assert self._process is not None
        if reason is not None:
            self._process.send_signal(signal.SIGUSR2)
            # The handler writes in a moment, whatever the process does.
            _until(lambda: bool(stack_of(folder)), seconds=2.0)
        self.close()
        lines = stack_of(folder).splitlines()
        own = [line.strip() for line in lines if f"{ROOT}/vlm_distill/" in line]
        place = own[0].replace(f"{ROOT}/vlm_distill/", "") if own else "outside the package"
        return Problem(sort=reason or "the process ended", place=place, detail="\n".join(lines[:12]))


def stack_of(folder: Path) -> str:
    path = folder.with_name(f"{folder.name}.stack")
    return path.read_text() if path.exists() else ""


def _out(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def _environment(work: Path) -> dict[str, str]:
    return {
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(work / "hub"),
        "TOKENIZERS_PARALLELISM": "false",
        "VLM_DISTILL_CACHE": str(work / "verdicts"),
    }


def _until(holds: Callable[[], bool], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    with selectors.DefaultSelector() as nothing:
        while not holds() and time.monotonic() < end:
            nothing.select(STEP)


def _over_the_limit(process: subprocess.Popen[str]) -> str | None:
    """Wait for an answer, or the end of the process; return the limit that was reached before."""
    began, used, idle_since = _cpu_seconds(process.pid), 0.0, time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(_out(process), selectors.EVENT_READ)
        while not selector.select(STEP):
            seconds = _cpu_seconds(process.pid) - began
            if seconds > used:
                used, idle_since = seconds, time.monotonic()
            if seconds > CPU_SECONDS:
                return "too long"
            if time.monotonic() - idle_since > IDLE_SECONDS:
                return "hang"
            if _bytes(process.pid) > MAX_BYTES:
                return "memory"
    return None


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def cases(kinds: Iterable[str], *, seed: str, number: int) -> list[tuple[str, str]]:
    """Return so many cases, the kinds in turn: the first of them are a sample of all."""
    names = list(kinds)
    return [(names[at % len(names)], f"{seed}-{at // len(names)}") for at in range(number)]


def fuzz(chosen: Iterable[tuple[str, str]], *, material: Path, work: Path) -> Iterator[Result]:
    """Do the cases; yield what each came to. The inputs of those that failed stay below `work`."""
    worker = Worker(material, work)
    try:
        for kind, seed in chosen:
            folder = work / f"{kind}-{seed}"
            result = worker.do(kind, seed, folder)
            if not result.problems:
                shutil.rmtree(folder)
                folder.with_name(f"{folder.name}.log").unlink(missing_ok=True)
            folder.with_name(f"{folder.name}.stack").unlink(missing_ok=True)
            yield result
    finally:
        worker.close()


def summary(results: Iterable[Result]) -> str:
    """Return a line a kind: its cases, how their last commands ended, failures and seconds."""
    lines = []
    by_kind: dict[str, list[Result]] = {}
    for result in results:
        by_kind.setdefault(result.kind, []).append(result)
    for kind, found in by_kind.items():
        last = [result.codes[-1] for result in found if result.codes]
        num_failed, seconds = (
            sum(bool(result.problems) for result in found),
            sum(one.seconds for one in found),
        )
        lines.append(
            f"{kind:<32} {len(found):>4} cases: {last.count(0):>4} done, {last.count(2):>4} refused, "
            f"{num_failed:>4} failed; {seconds:.0f} s"
        )
    return "\n".join(lines)


def describe(result: Result) -> str:
    """Return how to make a case again, and what it showed."""
    lines = [f"python -m tests.fuzz {result.kind} {result.seed}"]
    lines += [f"  {one.sort} at {one.place}: {one.detail}" for one in result.problems]
    return "\n".join(lines)
