"""A process that does one case after the other, as the lines that it reads name them.

A line is [kind, seed, folder] as JSON; it is answered by [exit codes, problems].
"""

import faulthandler
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

from tests.fuzz.case import Case, Problem
from tests.fuzz.checks import other_results, uncounted_rows, written_elsewhere, wrong_ending
from tests.fuzz.command import Outcome, call
from tests.fuzz.kinds import KINDS
from tests.fuzz.writes import Recorder, changes, looks

MAX_BYTES = 2**30
"""How much more memory a command may need than there was before it."""
MAX_ALLOCATED = 16 * 2**30
"""An allocation that no machine has must fail in this process, and not end others."""


def main(material: Path, temporary: Path) -> None:
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ["HOME"] = os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_ALLOCATED, MAX_ALLOCATED))
    recorder = Recorder()
    print("ready", file=answers, flush=True)
    for line in requests:
        kind, seed, name = json.loads(line)
        folder = Path(name)
        codes: list[int | None] = []
        folder.mkdir(parents=True)
        with _in_folder(folder):
            problems = _do(kind, seed, codes, folder=folder, material=material, recorder=recorder)
        print(json.dumps([codes, [asdict(problem) for problem in problems]]), file=answers, flush=True)


@contextmanager
def _in_folder(folder: Path) -> Iterator[None]:
    os.chdir(folder)
    # For whoever ends this process because the case takes too long.
    with folder.with_name(f"{folder.name}.stack").open("w") as stack:
        faulthandler.register(signal.SIGUSR2, file=stack)
        try:
            yield
        finally:
            faulthandler.unregister(signal.SIGUSR2)
            os.chdir("/")


def _do(
    kind: str, seed: str, codes: list[int | None], *, folder: Path, material: Path, recorder: Recorder
) -> list[Problem]:
    """Make a case and call its commands, whose `codes` are noted; return the first problems."""
    try:
        case = KINDS[kind](Random(f"{kind} {seed}"), folder, material)
        for arguments in case.commands:
            outcome, problems = _command(case, arguments, folder=folder, recorder=recorder)
            if not problems and outcome.code == 0 and arguments[0] == "run":
                problems = [
                    *uncounted_rows(case, folder / case.outputs[0]),
                    *other_results(case, folder, material),
                ]
            codes.append(outcome.code)
            if problems:
                called = " ".join(arguments)[:400]
                return [replace(one, detail=f"{called}: {one.detail}") for one in problems]
    except Exception:  # The case itself is wrong.
        return [Problem(sort="fuzz", place=kind, detail=traceback.format_exc())]
    return []


def _command(
    case: Case, arguments: tuple[str, ...], *, folder: Path, recorder: Recorder
) -> tuple[Outcome, list[Problem]]:
    outputs = tuple(folder / name for name in case.outputs)
    log, temporary = folder.with_name(f"{folder.name}.log"), Path(tempfile.gettempdir())
    around, within = looks(folder, without=case.outputs), [looks(output) for output in outputs]
    bytes_before = _reset_peak()
    with recorder.recording() as written:
        outcome = call(arguments, log)
    problems = [*wrong_ending(outcome), *_memory_problems(bytes_before)]
    changed = changes(around, looks(folder, without=case.outputs))
    verdicts = Path(os.environ["VLM_DISTILL_CACHE"])
    allowed = (*outputs, temporary, log, verdicts, Path(os.devnull))
    problems += written_elsewhere(written, changed, allowed)
    problems += _left_in(temporary)
    if outcome.code == 2:
        for output, before in zip(outputs, within, strict=True):
            lost = changes(before, looks(output)) if before else []
            problems += _changed(lost, outcome)
    return outcome, problems


def _changed(paths: list[str], outcome: Outcome) -> list[Problem]:
    said = outcome.printed.splitlines()[-1][:300]
    what = ("changed by a refusal", "an existing folder")
    return (
        [Problem(sort=what[0], place=what[1], detail=f"{len(paths)} of it, {paths[:5]}: {said}")]
        if paths
        else []
    )


def _left_in(temporary: Path) -> list[Problem]:
    left = sorted(temporary.iterdir())
    for path in left:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return [Problem(sort="left behind", place=path.name, detail=str(path)) for path in left]


def _memory_problems(bytes_before: int) -> list[Problem]:
    more = _memory("VmHWM") - bytes_before
    if more <= MAX_BYTES:
        return []
    return [Problem(sort="memory", place="", detail=f"{more / 2**20:,.0f} MiB more than before")]


def _reset_peak() -> int:
    """Forget the largest memory so far; return that of now in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
