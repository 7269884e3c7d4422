"""What the processes of the jobs in test_processes.py do.

`python -m tests.distributed.process_jobs NAME FOLDER`
"""

import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

from vlm_distill import processes
from vlm_distill.errors import DataError
from vlm_distill.files import write_json
from vlm_distill.progress import progress


def refuse() -> NoReturn:
    raise DataError("the main process refuses")


def exchange(folder: Path) -> None:
    processes.start("cpu")
    processes.start("cpu")
    rank = processes.rank()
    facts = {"rank": rank, "num": processes.num_processes(), "main": processes.is_main()}
    facts |= {"backend": dist.get_backend(), "device": processes.local_device("auto")}
    facts |= {"cuda": processes.local_device("cuda")}
    facts["from_main"] = processes.on_main(lambda: f"made by {rank}")
    try:
        processes.on_main(refuse)
    except DataError as error:
        facts["error"] = str(error)
    list(progress(range(3), label="a loop"))
    processes.wait()
    processes.stop()
    assert not dist.is_initialized()
    write_json(folder / f"{rank}.json", facts)


def outlast(folder: Path) -> None:
    """Let one process wait for longer than the timeout of the default group."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=1))
    processes.wait()
    if processes.rank() == 1:
        time.sleep(2)
    processes.wait()
    write_json(folder / f"{processes.rank()}.json", processes.on_main(lambda: "still there"))


def vanish(folder: Path) -> None:
    processes.start("cpu")
    if processes.rank() == 1:
        sys.exit(7)
    processes.wait()


if __name__ == "__main__":
    {"exchange": exchange, "outlast": outlast, "vanish": vanish}[sys.argv[1]](Path(sys.argv[2]))
