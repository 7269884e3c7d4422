"""Whole programs: the wheel in an environment of its own, and runs that are killed and started again."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
import venv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_run import write_run
from vlm_distill.data.store import ResponseStore

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
NUM_KILLS = 20
# How long a run works at most before it is killed: a few kills a run.
MAX_SECONDS = 8.0
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def test_the_wheel_lists_its_files_in_a_clean_environment_without_torch(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True, capture_output=True
    )
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "pydantic", "pyyaml"], check=True, capture_output=True
    )
    command = [tmp_path / "venv" / "bin" / "vlm-distill", "ls"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    for name in ("easy_vqa", "easy_vqa_teacher", "easy_vqa_labelled"):
        assert name in listed
    found = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False)
    assert found.returncode != 0
    [teacher] = (tmp_path / "venv").rglob("assets/easy_vqa_teacher/model.safetensors")
    assert teacher.stat().st_size <= 20 * 2**20


def start(config: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vlm_distill.cli", "run", str(config)]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=ENVIRONMENT
    )


def run_to_the_end(config: Path) -> str:
    """Run to the end; return the log."""
    with start(config) as process:
        _, log = process.communicate(timeout=250)
    assert process.returncode == 0, log
    return log


def run_until(config: Path, pattern: str) -> None:
    """Run and kill as soon as the run folder has a file that matches."""
    with start(config) as process:
        while not list((config.parent / "run").glob(pattern)):
            assert process.poll() is None, f"ended before {pattern} appeared"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL


def run_for(config: Path, seconds: float) -> bool:
    """Kill a run `seconds` after it began to work; return whether it was still running."""
    with start(config) as process:
        assert process.stderr is not None
        # The first line comes after the imports: what follows is work.
        process.stderr.readline()
        drain = threading.Thread(target=process.stderr.read)
        drain.start()
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            code = process.wait()
        drain.join()
    assert code in (0, -signal.SIGKILL)
    return code != 0


def write_jobs(folder: Path) -> Path:
    """Write a run of all kinds of stages, long enough to be killed inside; a checkpoint at every step."""
    stage = {
        "steps": 40,
        "batch_size": 4,
        "micro_batch_size": 2,
        "learning_rate": 1e-3,
        "checkpoint_every": 1,
    }
    folder.mkdir()
    # One control samples its own responses during training.
    controls = [{"name": kind, "objective": {"kind": kind}} for kind in ("seqkd", "gkd")]
    return write_run(
        folder, warmup={"objective": {"kind": "seqkd"}, "train": stage}, train=stage, controls=controls
    )


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "calm"
    run_to_the_end(write_jobs(folder))
    return folder


def check_equal_end(calm: Path, rough: Path) -> None:
    """Check that responses, weights and scores of two runs are equal bit by bit."""
    manifests = (path for path in (calm / "run").rglob("manifest.json") if path.parent.name != "data")
    stores = sorted(path.parent.relative_to(calm) for path in manifests)
    assert len(stores) > 10
    for store in stores:
        assert ResponseStore(rough / store).read() == ResponseStore(calm / store).read(), store
    models = sorted(path.relative_to(calm) for path in (calm / "run").rglob("model.safetensors"))
    assert len(models) == 6
    for model in models:
        expected, found = load_file(calm / model), load_file(rough / model)
        assert all(torch.equal(found[name], value) for name, value in expected.items()), model
    assert (rough / "run" / "summary.json").read_text() == (calm / "run" / "summary.json").read_text()


@pytest.mark.timeout(1500)
def test_a_run_that_is_killed_at_named_moments_ends_like_an_undisturbed_one(
    calm: Path, tmp_path: Path
) -> None:
    config = write_jobs(tmp_path / "rough")
    moments = (
        "data/images/*/*",
        "student_at_start/config.json",
        "responses/teacher/dropped.json",
        "warmup/checkpoints/step_00000003",
        "warmup/checkpoints/.step_*.tmp",
        "responses/student_round_1/*.parquet",
        "round_1/checkpoints/step_00000020",
        "eval/round_1/*/samples.jsonl",
        "round_2/checkpoints/step_00000007/*",
        "gkd/checkpoints/step_00000004",
    )
    for moment in moments:
        run_until(config, moment)
    log = run_to_the_end(config)
    assert "gkd: continuing after step" in log
    check_equal_end(calm, tmp_path / "rough")


@pytest.mark.timeout(1500)
def test_runs_that_are_killed_at_random_moments_end_like_an_undisturbed_one(
    calm: Path, tmp_path: Path
) -> None:
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 2**32))
    print(f"KILL_SEED={seed} repeats these moments")
    moments = random.Random(seed)
    kills, runs = 0, 0
    while kills < NUM_KILLS:
        # A run that ends before its kill is compared, and the next one begins in a new folder.
        runs += 1
        config = write_jobs(tmp_path / f"rough_{runs}")
        while kills < NUM_KILLS and run_for(config, moments.uniform(0, MAX_SECONDS)):
            kills += 1
        run_to_the_end(config)
        check_equal_end(calm, tmp_path / f"rough_{runs}")
