"""Signals that ask a job to end: Ctrl-C, SIGTERM, and SIGUSR1 with which schedulers warn ahead.

Only the command line takes them (`handled`), in its main thread; from Python KeyboardInterrupt stays what it
is. A signal interrupts at once, but inside `patiently`, where work would be lost: there it waits until the
loop asks for it between two optimiser steps or batches, stores what it has and ends.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from types import FrameType
from typing import NoReturn, TypeVar

T = TypeVar("T")
# By signal: the exit code of a shell for a process that it has ended. SIGUSR1 asks for the same as SIGTERM.
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
if hasattr(signal, "SIGUSR1"):
    EXIT_CODES[signal.SIGUSR1] = 143


class Interrupted(KeyboardInterrupt):
    """A signal has ended the job; the message says what was kept, empty where nothing was to be."""


@dataclass(slots=True)
class _Request:
    """Which signal asked this process to end, 0 for none, and how many blocks want to be asked first."""

    signal: int = 0
    num_patient: int = 0


# One process has one set of signals.
_request = _Request()


def is_asked() -> bool:
    """Say whether a signal has asked this process to end."""
    return _request.signal != 0


def exit_code() -> int:
    """Return the exit code of a process that was asked to end, 130 where nothing but an exception says so."""
    return EXIT_CODES.get(signal.Signals(_request.signal or signal.SIGINT), 130)


def end(kept: str) -> NoReturn:
    """End the job, which this process or another one was asked for; `kept` is the line about it."""
    _request.signal = _request.signal or signal.SIGTERM
    raise Interrupted(f"{kept}; the same command continues")


def until_asked(items: Iterable[T]) -> Iterator[T]:
    """Yield the items for as long as no signal asks to end."""
    for item in items:
        if is_asked():
            return
        yield item


@contextmanager
def patiently() -> Iterator[None]:
    """Let signals wait for the block, which asks for them; its end heeds what it has not."""
    _request.num_patient += 1
    try:
        yield
    finally:
        _request.num_patient -= 1
    if is_asked() and not _request.num_patient:
        raise Interrupted


@contextmanager
def handled() -> Iterator[None]:
    """Take the signals for the block; in another thread than the main one they stay as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _install(_ask)
    try:
        yield
    finally:
        _request.signal = _request.num_patient = 0
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def children_without_interrupts() -> Iterator[None]:
    """Keep Ctrl-C, which a terminal sends to all processes of a command, from those that start in the block.

    This process takes it as before, and ends its children when it has done so.
    """
    # It unblocks what it finds blocked when it starts.
    resource_tracker.ensure_running()
    is_over = threading.Event()
    # A thread that does not block the signal takes it for the main one.
    listener = threading.Thread(target=is_over.wait, daemon=True)
    listener.start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        is_over.set()
        listener.join()


def end_at_once_on_signals() -> None:
    """Let signals end this process without a traceback: before and after a job nothing is to be kept."""
    _install(_end_at_once)


def _install(handler: Callable[[int, FrameType | None], None]) -> dict[signal.Signals, "signal._HANDLER"]:
    # None stands for a handler that Python has not installed and cannot install again.
    return {number: signal.signal(number, handler) or signal.SIG_DFL for number in EXIT_CODES}


def _ask(number: int, frame: FrameType | None) -> None:
    if is_asked():
        # Schedulers repeat theirs while a job ends.
        if number == signal.SIGINT:
            _say("ended at once; what was stored before is kept")
            _end_at_once(number, frame)
        return
    _request.signal = number
    if not _request.num_patient:
        if _is_importing(frame):
            _say("interrupted; the same command continues, or starts again")
            _end_at_once(number, frame)
        raise Interrupted
    _say(f"{signal.Signals(number).name}: ends after this step or batch; Ctrl-C now ends at once")


def _is_importing(frame: FrameType | None) -> bool:
    """Say whether a module is being imported: what is raised inside of torch's aborts the process."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _end_at_once(number: int, _: FrameType | None) -> None:
    os._exit(EXIT_CODES[signal.Signals(number)])


def _say(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        # A signal may come in the middle of a print, which cannot be entered twice.
        os.write(2, f"\nvlm-distill: {line}\n".encode())
