import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vlm_distill import processes, stopping
from vlm_distill.stopping import Interrupted, end, exit_code, handled, is_asked, patiently, until_asked

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), SIGNALS.items())
def test_a_signal_interrupts_at_once_where_nobody_asks(number: signal.Signals, code: int) -> None:
    with handled():
        with pytest.raises(Interrupted):
            send(number)
        assert is_asked()
        assert exit_code() == code


@pytest.mark.parametrize(("number", "code"), SIGNALS.items())
def test_a_patient_block_is_asked_between_two_items(number: signal.Signals, code: int) -> None:
    seen: list[int] = []

    @patiently()
    def work() -> None:
        for item in until_asked(range(5)):
            if item == 2:
                send(number)
                send(signal.SIGTERM)  # a scheduler repeats itself
            seen.append(item)
        end("kept")

    with handled():
        with pytest.raises(Interrupted, match=r"^kept; the same command continues$"):
            work()
        assert exit_code() == code
    assert seen == [0, 1, 2]
    assert not is_asked()


def test_the_end_of_a_patient_block_heeds_what_nobody_asked_for() -> None:
    @patiently()
    def work() -> None:
        send(signal.SIGTERM)
        with patiently():
            pass
        assert is_asked()

    with handled(), pytest.raises(Interrupted):
        work()


def test_a_process_that_another_one_asks_to_end_exits_as_if_terminated() -> None:
    with handled():
        with pytest.raises(Interrupted):
            end("kept")
        assert exit_code() == 143


def test_a_process_that_loses_the_others_after_a_signal_is_interrupted() -> None:
    @patiently()
    def work() -> None:
        with processes._others_alive():
            send(signal.SIGTERM)
            raise RuntimeError("Connection closed by peer")

    with handled(), pytest.raises(Interrupted):
        work()


def test_handlers_are_restored_and_from_python_an_interrupt_is_what_it_was() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with handled():
        assert all(signal.getsignal(number) != handler for number, handler in before.items())
    assert {number: signal.getsignal(number) for number in SIGNALS} == before

    @patiently()
    def work() -> None:
        send(signal.SIGINT)
        time.sleep(1)

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert not isinstance(caught.value, Interrupted)


def test_another_thread_than_the_main_one_takes_no_signals() -> None:
    before, found = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with handled():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


FAMILY = """
import multiprocessing, os, signal, time
from vlm_distill.stopping import children_without_interrupts, handled, is_asked, patiently

def live(pipe):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pipe.send("ready")
    time.sleep(0.5)
    pipe.send("untouched")

if __name__ == "__main__":
    os.setsid()
    ours, theirs = multiprocessing.Pipe()
    with handled(), patiently():
        with children_without_interrupts():
            child = multiprocessing.get_context("spawn").Process(target=live, args=(theirs,))
            child.start()
            assert ours.recv() == "ready"
            os.killpg(0, signal.SIGINT)
        print(ours.recv(), is_asked(), flush=True)
        child.join()
"""


def test_an_interrupt_of_all_processes_leaves_the_children_of_an_engine_alone(tmp_path: Path) -> None:
    (tmp_path / "family.py").write_text(FAMILY)
    command = [sys.executable, str(tmp_path / "family.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout == "untouched True\n", done.stderr


TWICE = """
import os, signal
from vlm_distill.stopping import handled, patiently
with handled(), patiently():
    os.kill(os.getpid(), signal.SIGUSR1)
    print("goes on", flush=True)
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        print("never", flush=True)
"""


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_second_interrupt_ends_at_once(rank: str) -> None:
    environment = {**os.environ, "RANK": rank}
    done = subprocess.run(
        [sys.executable, "-c", TWICE], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stdout) == (130, "goes on\n")
    lines = [line for line in done.stderr.splitlines() if line]
    # Of several processes one speaks.
    assert [line.split()[:2] for line in lines] == (
        [["vlm-distill:", "SIGUSR1:"], ["vlm-distill:", "ended"]] if rank == "0" else []
    )


def test_a_signal_inside_an_import_ends_at_once_in_one_line(tmp_path: Path) -> None:
    # C++ that runs Python while a library is imported knows no exceptions.
    for number, code in SIGNALS.items():
        (tmp_path / "imported.py").write_text(
            f"import os\ntry:\n    os.kill(os.getpid(), {int(number)})\nfinally:\n    print('never')"
        )
        program = "from vlm_distill.stopping import handled\nwith handled():\n    import imported"
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False
        )
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr == "\nvlm-distill: interrupted; the same command continues, or starts again\n"


def test_signals_before_and_after_a_job_end_the_process_without_a_traceback() -> None:
    for number, code in SIGNALS.items():
        program = (
            "import atexit, os\nfrom vlm_distill.stopping import end_at_once_on_signals\n"
            f"end_at_once_on_signals()\natexit.register(lambda: os.kill(os.getpid(), {int(number)}))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (code, "")
    assert set(stopping.EXIT_CODES) == set(SIGNALS)
