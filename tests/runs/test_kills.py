"""Runs that are killed and started again end like an undisturbed one, bit by bit."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.tiny_run import write_run
from tests.whole_runs import once
from vlm_distill.data.store import ResponseStore
from vlm_distill.files import read_json
from vlm_distill.teacher_cache.store import CacheReader, CacheStore
from vlm_distill.teacher_cache.tiers import Hidden

pytestmark = pytest.mark.slow
# The moments follow from a seed, so that every run of a commit kills at the same ones; more of them by hand.
SEEDS = [int(seed) for seed in os.environ.get("KILL_SEED", "1").split()]
NUM_KILLS = 5
# How long a run works at most before it is killed: a few kills a run.
MAX_SECONDS = 8.0


def start(config: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vlm_distill.cli", "run", str(config)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


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


def write_jobs(folder: Path, **changes: object) -> Path:
    """Write a run of all kinds of stages, long enough to be killed inside; a checkpoint at every step."""
    stage = {
        "steps": 40,
        "batch_size": 4,
        "micro_batch_size": 2,
        "learning_rate": 1e-3,
        "checkpoint_every": 1,
    }
    # One control samples its own responses during training.
    controls = [{"name": kind, "objective": {"kind": kind}} for kind in ("seqkd", "gkd")]
    jobs = {"warmup": {"objective": {"kind": "seqkd"}, "train": stage}, "train": stage, "controls": controls}
    return write_run(folder, **jobs, **changes)


def write_cached_jobs(folder: Path) -> Path:
    """Write a run that trains from the teacher cache, and keeps the features of a frozen tower."""
    jobs = yaml.safe_load(write_jobs(folder).read_text())
    train = {**jobs["train"], "trainable": {"vision": "frozen"}}
    return write_run(
        folder,
        warmup={**jobs["warmup"], "train": train},
        train=train,
        controls=jobs["controls"][:1],  # what is sampled during training cannot be cached
        cache={"tier": "hidden"},
    )


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that nothing disturbed."""
    return once(tmp_path_factory, "calm", lambda folder: run_to_the_end(write_jobs(folder)))


def check_equal_end(calm: Path, rough: Path, *, num_models: int = 6) -> None:
    """Check that responses, weights and scores of two runs are equal bit by bit."""
    manifests = (path.relative_to(calm) for path in (calm / "run").rglob("manifest.json"))
    stores = sorted(path.parent for path in manifests if not {"data", "cache"} & set(path.parts))
    assert len(stores) > num_models
    for store in stores:
        assert ResponseStore(rough / store).read() == ResponseStore(calm / store).read(), store
    models = sorted(path.relative_to(calm) for path in (calm / "run").rglob("model.safetensors"))
    assert len(models) == num_models
    for model in models:
        check_equal_tensors(load_file(rough / model), load_file(calm / model), where=model)
    assert (rough / "run" / "summary.json").read_text() == (calm / "run" / "summary.json").read_text()


def check_equal_tensors(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], *, where: object
) -> None:
    assert found.keys() == expected.keys(), where
    assert all(torch.equal(found[name], value) for name, value in expected.items()), where


def check_equal_caches(calm: Path, rough: Path) -> None:
    """Check that two teacher caches hold the same rows of the same responses, in whatever shards."""
    keys = {path.parents[1].relative_to(calm): read_json(path)["key"] for path in calm.rglob("manifest.json")}
    assert len(keys) > 3
    for name, key in keys.items():
        expected, found = (CacheStore(folder / name, key) for folder in (calm, rough))
        found.verify()
        assert found.places.keys() == expected.places.keys()
        for response_id in expected.places:
            rows = [CacheReader([store], tier=Hidden()).read([response_id]) for store in (found, expected)]
            check_equal_tensors(rows[0], rows[1], where=(name, response_id))


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
@pytest.mark.parametrize("seed", SEEDS)
def test_runs_that_are_killed_at_random_moments_end_like_an_undisturbed_one(
    calm: Path, tmp_path: Path, seed: int
) -> None:
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


@pytest.mark.timeout(1500)
def test_a_run_from_the_caches_that_is_killed_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    run_to_the_end(write_cached_jobs(tmp_path / "calm"))
    config = write_cached_jobs(tmp_path / "rough")
    moments = (
        "cache/held_out/rank_0/*",
        "warmup/checkpoints/step_00000003",
        "vision_features/*",
        "cache/student_round_1/rank_0/*",
        "cache/teacher/rank_0/rows-*.safetensors",
        "round_1/checkpoints/step_00000020",
        "cache/student_round_2/rank_0/manifest.json",
        "round_2/checkpoints/step_00000007/*",
        "seqkd/checkpoints/step_00000004",
    )
    for moment in moments:
        run_until(config, moment)
    run_to_the_end(config)
    check_equal_end(tmp_path / "calm", tmp_path / "rough", num_models=5)
    check_equal_caches(tmp_path / "calm" / "run" / "cache", tmp_path / "rough" / "run" / "cache")
    expected, found = (
        {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}
        for folder in (tmp_path / "calm/run/vision_features", tmp_path / "rough/run/vision_features")
    )
    # A kill loses what was not flushed, and it is computed again where it is still needed.
    assert found
    check_equal_tensors(found, {name: expected[name] for name in found}, where="vision_features")
