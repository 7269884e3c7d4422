"""Whole programs: the wheel in an environment of its own, and runs that are killed and started again."""

import os
import signal
import subprocess
import sys
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


@pytest.mark.timeout(1500)
def test_a_run_that_is_killed_again_and_again_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    # Long enough stages that a kill falls inside them, and a checkpoint at every step.
    stage = {
        "steps": 40,
        "batch_size": 4,
        "micro_batch_size": 2,
        "learning_rate": 1e-3,
        "checkpoint_every": 1,
    }
    for folder in (calm, rough):
        folder.mkdir()
        # One control samples its own responses during training.
        controls = [{"name": kind, "objective": {"kind": kind}} for kind in ("seqkd", "gkd")]
        warmup = {"objective": {"kind": "seqkd"}, "train": stage}
        write_run(folder, warmup=warmup, train=stage, controls=controls)
    run_to_the_end(calm / "config.yaml")
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
        run_until(rough / "config.yaml", moment)
    log = run_to_the_end(rough / "config.yaml")
    assert "gkd: continuing after step" in log
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
