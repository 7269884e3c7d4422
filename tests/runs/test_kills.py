"""Runs that are disturbed and started again end like an undisturbed one, log and report included."""

import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.forked import Forks, Job, forks
from tests.tiny_run import write_run
from tests.whole_runs import once
from vlm_distill.data.store import ResponseStore
from vlm_distill.files import TEMPORARY, read_json
from vlm_distill.reporting import write_report
from vlm_distill.reporting.facts import Run, open_run
from vlm_distill.teacher_cache.store import CacheReader, CacheStore
from vlm_distill.teacher_cache.tiers import Hidden
from vlm_distill.training.metrics import THROUGHPUT

pytestmark = pytest.mark.slow
# The moments follow from a seed, so that every run of a commit is disturbed at the same ones; `.ci/full`
# has more of them.
SEEDS = [int(seed) for seed in os.environ.get("KILL_SEED", "1").split()]
PROCESSES = [int(number) for number in os.environ.get("KILL_PROCESSES", "1").split()]
NUM_EVENTS = 5
# How long a run works at most before it is disturbed: a few events a run.
MAX_SECONDS = 5.0
FORGIVEN = (r"vision_features/.*", r".*\.parquet", r"cache/.*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Signals that follow each other, and the exit code that they end a process with; None for none."""

    signals: tuple[signal.Signals, ...]
    code: int | None

    def __str__(self) -> str:
        return "+".join(one.name for one in self.signals)

    @property
    def is_polite(self) -> bool:
        return self.signals in ((signal.SIGINT,), (signal.SIGTERM,), (signal.SIGUSR1,))

    def happen_to(self, job: Job, *, ranks: Sequence[int] | None = None) -> None:
        for number, one in enumerate(self.signals):
            if number:
                time.sleep(0.05)
            job.send(one, ranks=ranks)


KILL = Event(signals=(signal.SIGKILL,), code=-signal.SIGKILL)
INTERRUPT = Event(signals=(signal.SIGINT,), code=130)
TERMINATE = Event(signals=(signal.SIGTERM,), code=143)
WARN = Event(signals=(signal.SIGUSR1,), code=143)
INSIST = Event(signals=(signal.SIGINT, signal.SIGINT), code=130)
PAUSE = Event(signals=(signal.SIGSTOP, signal.SIGCONT), code=None)
EVENTS = (KILL, INTERRUPT, TERMINATE, WARN, INSIST, PAUSE)


@pytest.fixture(scope="module")
def runner() -> Iterator[Forks]:
    with forks() as found:
        yield found


def run_to_the_end(job: Job) -> str:
    """Return the log."""
    assert set(job.wait()) == {0}, job.output
    return job.output


def disturb_at(job: Job, folder: Path, pattern: str, event: Event) -> None:
    """Let the event happen as soon as the run folder has a file that matches."""
    while not list((folder / "run").glob(pattern)):
        assert job.is_running(), f"ended before {pattern} appeared\n{job.output}"
        time.sleep(0.002)
    event.happen_to(job)
    assert set(job.wait()) == {0 if event.code is None else event.code}, job.output
    check_what_is_said(job, event)


def check_what_is_said(job: Job, event: Event) -> None:
    assert "Traceback" not in job.output
    if event.is_polite:
        lines = [line for line in job.output.splitlines() if line.startswith("vlm-distill: ")]
        assert sum("the same command continues" in line for line in lines) == 1, job.output


def disturb_after(job: Job, seconds: float, event: Event) -> bool:
    """Let the event happen `seconds` after the run began to work; return whether it was still running."""
    while not job.output:
        time.sleep(0.002)
    deadline = time.monotonic() + seconds
    while job.is_running() and time.monotonic() < deadline:
        time.sleep(0.002)
    if not job.is_running():
        assert set(job.wait()) == {0}, job.output
        return False
    event.happen_to(job)
    codes = set(job.wait())
    # It may have ended by itself in the last moment.
    assert codes <= {0, event.code}, job.output
    assert "Traceback" not in job.output
    return codes != {0}


def write_jobs(folder: Path, **changes: object) -> Path:
    """Write a run of all kinds of stages, whose checkpoints, log lines and evaluations seldom meet."""
    stage = {
        "steps": 24,
        "batch_size": 4,
        "micro_batch_size": 2,
        "learning_rate": 1e-3,
        "checkpoint_every": 3,
        "log_every": 5,
        "evaluate_every": 7,
    }
    early = {**stage, "evaluate_every": 4, "patience": 3}
    # One control samples its own responses during training.
    controls = [{"name": kind, "objective": {"kind": kind}} for kind in ("seqkd", "gkd")]
    jobs = {"warmup": {"objective": {"kind": "seqkd"}, "train": early}, "train": stage, "controls": controls}
    return write_run(folder, **{"output": "run", **jobs, **changes})


def write_cached_jobs(folder: Path) -> Path:
    """Write a run that trains from the teacher cache, and keeps the features of a frozen tower."""
    jobs = yaml.safe_load(write_jobs(folder).read_text())
    train = {**jobs["train"], "trainable": {"vision": "frozen"}}
    return write_run(
        folder,
        output="run",
        warmup={**jobs["warmup"], "train": train},
        train=train,
        controls=jobs["controls"][:1],  # what is sampled during training cannot be cached
        cache={"tier": "hidden"},
    )


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, runner: Forks) -> Path:
    """Return a folder with a config, and in `run` what it makes of it undisturbed."""

    def make(folder: Path) -> None:
        run_to_the_end(runner.start(folder, "run", str(write_jobs(folder))))

    return once(tmp_path_factory, "calm", make)


@pytest.fixture(scope="module")
def calm_in_two(tmp_path_factory: pytest.TempPathFactory, runner: Forks) -> Path:
    """Return the same of a short run in two processes."""

    def make(folder: Path) -> None:
        config = write_jobs(folder, controls=[], rounds=1)
        run_to_the_end(runner.start(folder, "run", str(config), num_processes=2))

    return once(tmp_path_factory, "calm_in_two", make)


def check_equal_end(calm: Path, rough: Path, *, num_models: int = 6) -> None:
    """Check that all that two runs leave is equal, bit by bit, but for times and how it is cut into files."""
    manifests = (path.relative_to(calm) for path in (calm / "run").rglob("manifest.json"))
    # Which process stores a batch depends on what each had done before, so parts are read as one.
    apart = re.compile(r"data|cache|rank_\d+")
    stores = sorted(path.parent for path in manifests if not any(map(apart.fullmatch, path.parts)))
    assert len(stores) > num_models
    for store in stores:
        found, expected = (
            sorted(ResponseStore(one / store).read(), key=attrgetter("id")) for one in (rough, calm)
        )
        assert found == expected, store
    models = sorted(path.relative_to(calm) for path in (calm / "run").rglob("model.safetensors"))
    assert len(models) == num_models
    for model in models:
        check_equal_tensors(load_file(rough / model), load_file(calm / model), where=model)
    assert (rough / "run" / "summary.json").read_text() == (calm / "run" / "summary.json").read_text()
    assert file_names(rough / "run") == file_names(calm / "run")
    check_equal_reports(calm, rough)


def file_names(run: Path) -> set[str]:
    """Return the names of all files but those that depend on how often a run was written down."""
    paths = [path.relative_to(run) for path in run.rglob("*") if path.is_file()]
    assert not [path for path in paths if any(TEMPORARY.fullmatch(part) for part in path.parts)]
    return {str(path) for path in paths if not any(re.fullmatch(one, str(path)) for one in FORGIVEN)}


def check_equal_reports(calm: Path, rough: Path) -> None:
    """Check that what a report reads and what it says are equal, the logs of training among it."""
    (expected, expected_page), (found, found_page) = (told_without_times(one) for one in (calm, rough))
    assert len(expected.trainings) > 1
    for one, other in zip(found.trainings, expected.trainings, strict=True):
        assert one.rows, one.label
        assert one == other, one.label
    assert found == expected
    assert found_page == expected_page


def told_without_times(place: Path) -> tuple[Run, str]:
    """Return what a report says of the run in a folder, as if all had taken as long."""
    copy = place / "without_times"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(place / "run", copy / "run")
    for path in copy.glob("run/*/metrics.jsonl"):
        rows = [json.loads(line) | {THROUGHPUT: 1.0} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path in copy.glob("run/*/stage.json"):
        record = read_json(path) | {"seconds": {}}
        del record["checksum"]
        path.write_text(json.dumps(record))
    # What was prepared before models were loaded is not written down where a kill came in between.
    path = copy / "run" / "provenance.json"
    record = read_json(path)
    record["steps"] = {name: one for name, one in record["steps"].items() if not name.endswith(".prepare")}
    del record["checksum"]
    path.write_text(json.dumps(record))
    for path in copy.rglob("*"):
        os.utime(path, (0, 0))
    # The report names the folder as it is given.
    before = Path.cwd()
    os.chdir(copy)
    try:
        return open_run(Path("run")), write_report(Path("run")).read_text()
    finally:
        os.chdir(before)


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


@pytest.mark.timeout(600)
def test_a_run_that_is_disturbed_at_named_moments_ends_like_an_undisturbed_one(
    calm: Path, runner: Forks, tmp_path: Path
) -> None:
    moments = (
        ("data/images/*/*", INTERRUPT),
        ("student_at_start/config.json", TERMINATE),
        ("responses/teacher/dropped.json", KILL),
        ("warmup/metrics.jsonl", WARN),
        ("warmup/checkpoints/step_00000003", INTERRUPT),
        ("warmup/checkpoints/.step_*.tmp", KILL),
        ("warmup/checkpoints/step_00000009", INSIST),
        ("responses/student_round_1/*.parquet", TERMINATE),
        ("round_1/checkpoints/step_00000012", TERMINATE),
        ("eval/round_1/*/samples.jsonl", WARN),
        ("round_2/checkpoints/step_00000006/*", KILL),
        ("gkd/checkpoints/step_00000003", INTERRUPT),
    )
    for pattern, event in moments:
        disturb_at(runner.start(tmp_path, "run", str(calm / "config.yaml")), tmp_path, pattern, event)
    job = runner.start(tmp_path, "run", str(calm / "config.yaml"))
    time.sleep(0.5)
    PAUSE.happen_to(job)
    assert "gkd: continuing after step" in run_to_the_end(job)
    check_equal_end(calm, tmp_path)


@pytest.mark.timeout(600)
def test_a_run_in_two_processes_that_is_disturbed_ends_like_an_undisturbed_one(
    calm_in_two: Path, runner: Forks, tmp_path: Path
) -> None:
    config = str(calm_in_two / "config.yaml")
    moments = (
        ("responses/teacher/rank_1", TERMINATE),
        ("warmup/metrics.jsonl", INTERRUPT),
        ("warmup/checkpoints/step_00000006", INSIST),
        ("round_1/checkpoints/step_00000003", WARN),
        ("round_1/checkpoints/step_00000009", KILL),
    )
    for pattern, event in moments:
        job = runner.start(tmp_path, "run", config, num_processes=2)
        disturb_at(job, tmp_path, pattern, event)
    # Whichever process is asked, all end after the same step.
    job = runner.start(tmp_path, "run", config, num_processes=2)
    wait_for(job, tmp_path / "run" / "round_1" / "checkpoints" / "step_00000012")
    WARN.happen_to(job, ranks=[1])
    assert job.wait() == [143, 143], job.output
    assert job.output.count("round 1: stopped after step") == 1, job.output
    job = runner.start(tmp_path, "run", config, num_processes=2)
    PAUSE.happen_to(job, ranks=[1])
    assert "round 1: continuing after step" in run_to_the_end(job)
    check_equal_end(calm_in_two, tmp_path, num_models=3)


def wait_for(job: Job, path: Path) -> None:
    while not path.exists():
        assert job.is_running(), job.output
        time.sleep(0.002)


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_processes", PROCESSES)
def test_runs_that_are_disturbed_at_random_moments_end_like_an_undisturbed_one(
    calm: Path, calm_in_two: Path, runner: Forks, tmp_path: Path, seed: int, num_processes: int
) -> None:
    expected, num_models = (calm, 6) if num_processes == 1 else (calm_in_two, 3)
    moments = random.Random(seed)
    num_events, runs = 0, 0
    while num_events < NUM_EVENTS:
        # A run that ends before its event is compared, and the next one begins in a new folder.
        runs += 1
        rough = tmp_path / f"rough_{runs}"
        rough.mkdir()
        start = (rough, "run", str(expected / "config.yaml"))
        while num_events < NUM_EVENTS:
            event, seconds = moments.choice(EVENTS), moments.uniform(0, MAX_SECONDS)
            if not disturb_after(runner.start(*start, num_processes=num_processes), seconds, event):
                break
            num_events += 1
        run_to_the_end(runner.start(*start, num_processes=num_processes))
        check_equal_end(expected, rough, num_models=num_models)


@pytest.mark.timeout(600)
def test_a_run_from_the_caches_that_is_disturbed_ends_like_an_undisturbed_one(
    runner: Forks, tmp_path: Path
) -> None:
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    calm.mkdir()
    rough.mkdir()
    config = str(write_cached_jobs(calm))
    run_to_the_end(runner.start(calm, "run", config))
    moments = (
        ("cache/held_out/rank_0/*", KILL),
        ("warmup/checkpoints/step_00000003", INTERRUPT),
        ("vision_features/*", KILL),
        ("cache/student_round_1/rank_0/*", TERMINATE),
        ("cache/teacher/rank_0/rows-*.safetensors", KILL),
        ("round_1/checkpoints/step_00000012", INSIST),
        ("cache/student_round_2/rank_0/manifest.json", WARN),
        ("round_2/checkpoints/step_00000006/*", KILL),
        ("seqkd/checkpoints/step_00000003", TERMINATE),
    )
    for pattern, event in moments:
        disturb_at(runner.start(rough, "run", config), rough, pattern, event)
    run_to_the_end(runner.start(rough, "run", config))
    check_equal_end(calm, rough, num_models=5)
    check_equal_caches(calm / "run" / "cache", rough / "run" / "cache")
    expected, found = (
        {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}
        for folder in (calm / "run/vision_features", rough / "run/vision_features")
    )
    # A kill loses what was not flushed, and it is computed again where it is still needed.
    assert found
    check_equal_tensors(found, {name: expected[name] for name in found}, where="vision_features")
