from pathlib import Path

import pytest
import torch.distributed as dist

from tests.distributed.torchrun import torchrun
from vlm_distill import processes
from vlm_distill.errors import ConfigError
from vlm_distill.files import read_json

JOBS = "tests.distributed.process_jobs"


def test_one_process_without_a_launcher_makes_no_process_group() -> None:
    processes.start("cpu")
    assert (processes.rank(), processes.num_processes(), processes.is_main()) == (0, 1, True)
    processes.wait()
    results = [object()]
    assert processes.on_main(lambda: results[0]) is results[0]
    assert [processes.local_device(kind) for kind in ("cpu", "cuda", "mps")] == ["cpu", "cuda", "mps"]
    assert processes.local_device("auto") in ("cpu", "cuda", "mps", "xpu")
    processes.stop()
    assert not dist.is_initialized()


def test_several_processes_know_each_other_and_only_the_main_one_shows_progress(tmp_path: Path) -> None:
    job = torchrun(JOBS, "exchange", tmp_path)
    assert job.returncode == 0, job.output
    for rank in range(2):
        assert read_json(tmp_path / f"{rank}.json") == {
            "rank": rank,
            "num": 2,
            "main": rank == 0,
            "backend": "gloo",
            "device": "cpu",
            "cuda": f"cuda:{rank}",
            "from_main": "made by 0",
            "error": "the main process refuses",
        }
    assert job.output.count("a loop: 3 done") == 1


def test_waiting_outlasts_the_timeout_of_a_training_collective(tmp_path: Path) -> None:
    job = torchrun(JOBS, "outlast", tmp_path)
    assert job.returncode == 0, job.output
    assert [read_json(tmp_path / f"{rank}.json") for rank in range(2)] == ["still there"] * 2


def test_a_process_that_ends_ends_the_job(tmp_path: Path) -> None:
    job = torchrun(JOBS, "vanish", tmp_path)
    assert job.returncode == 1
    # Within seconds, the start of two interpreters included, and not after a timeout of 30 minutes.
    assert job.seconds < 60
    assert job.exit_codes[1] == 7
    assert job.exit_codes[0] != 0


def test_the_environment_of_several_processes_without_a_launcher_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"WORLD_SIZE=2: expected a launcher's RANK, .*torchrun"):
        processes.start("cpu")
    with pytest.raises(AssertionError, match="`start` comes first"):
        processes.rank()


def test_more_processes_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1000")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(ConfigError, match="one cuda device for each of the 1000 processes"):
        processes.start("cuda")
