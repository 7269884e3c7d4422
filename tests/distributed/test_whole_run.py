"""`vlm-distill run` under torchrun: the run of one process, from the data to the table."""

import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.distributed.torchrun import start, torchrun
from tests.tiny_run import STAGE, write_run
from vlm_distill.cli import main
from vlm_distill.data.store import ResponseStore

pytestmark = pytest.mark.slow


def new_run(folder: Path, **changes: object) -> Path:
    folder.mkdir()
    return write_run(folder, **changes)


def rows(folder: Path) -> dict[str, Any]:
    return {row["model"]: row for row in json.loads((folder / "run" / "summary.json").read_text())["rows"]}


def assert_same_students(found: Path, expected: Path) -> None:
    """Students are equal but for the order of additions, so their distance to the teacher nearly is."""
    assert rows(found).keys() == rows(expected).keys()
    for name, row in rows(expected).items():
        assert rows(found)[name]["scores"] == row["scores"]
        if row["token_kl"] is not None:
            assert rows(found)[name]["token_kl"] == pytest.approx(row["token_kl"], rel=1e-3, abs=1e-6)


@pytest.mark.timeout(600)
def test_a_run_in_two_processes_is_that_of_one(tmp_path: Path) -> None:
    one, two = new_run(tmp_path / "one"), new_run(tmp_path / "two")
    assert main(["run", str(one)]) == 0
    job = torchrun("vlm_distill.cli", "run", two)
    assert job.returncode == 0, job.output
    assert_same_students(two.parent, one.parent)
    # Bit for bit, where no training came before that adds up in another order.
    found, expected = (ResponseStore(path.parent / "run" / "responses" / "teacher") for path in (two, one))
    texts = [{row.id: (row.text, row.token_ids) for row in store.read()} for store in (found, expected)]
    assert texts[0] == texts[1]
    assert job.output.count("run tiny: writes to") == job.output.count("| teacher ") == 1
    assert json.loads((two.parent / "run" / "provenance.json").read_text())["num_processes"] == 2

    again = torchrun("vlm_distill.cli", "run", two)
    assert again.returncode == 0, again.output
    assert "round 2: unchanged" in again.output
    # Stored responses need no engine, also none that works in one process alone.
    other = torchrun("vlm_distill.cli", "run", two, "generate.engine={kind: vllm}")
    assert other.returncode == 0, other.output
    assert "round 2: unchanged" in other.output

    model, suite = two.parent / "run" / "round_2" / "model", two.parent / "suite.yaml"
    scored = torchrun("vlm_distill.cli", "eval", model, "--suite", suite, "--output", tmp_path / "scored")
    assert scored.returncode == 0, scored.output
    assert scored.output.count("tiny exact_match") == 1
    [row] = json.loads((tmp_path / "scored" / "summary.json").read_text())["rows"]
    assert row["scores"] == rows(two.parent)["round 2"]["scores"]


@pytest.mark.timeout(600)
def test_dpo_and_early_stopping_run_in_two_processes(tmp_path: Path) -> None:
    stage = {"steps": 4, "batch_size": 4, "checkpoint_every": 2, "evaluate_every": 1, "patience": 2}
    dpo = {"objective": {"kind": "dpo"}, "rounds": 1, "train": stage, "controls": []}
    one, two = new_run(tmp_path / "one", **dpo), new_run(tmp_path / "two", **dpo)
    assert main(["run", str(one)]) == 0
    job = torchrun("vlm_distill.cli", "run", two)
    assert job.returncode == 0, job.output
    assert_same_students(two.parent, one.parent)


@pytest.mark.timeout(600)
def test_a_run_goes_on_in_one_process_after_a_kill_in_two(tmp_path: Path) -> None:
    calm, rough = new_run(tmp_path / "calm"), new_run(tmp_path / "rough")
    assert main(["run", str(calm)]) == 0
    with start("vlm_distill.cli", "run", rough) as process:
        while not list((rough.parent / "run" / "warmup" / "checkpoints").glob("step_*")):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        psutil.Process(process.pid).children()[1].send_signal(signal.SIGKILL)
        process.communicate(timeout=100)
    assert process.returncode == 1
    assert main(["run", str(rough)]) == 0
    assert_same_students(rough.parent, calm.parent)


@pytest.mark.timeout(600)
def test_a_launcher_that_is_terminated_ends_all_processes_after_the_same_step(tmp_path: Path) -> None:
    long = {**STAGE, "steps": 200, "checkpoint_every": 150, "log_every": 1}
    run = new_run(
        tmp_path / "run", warmup={"objective": {"kind": "seqkd"}, "train": long}, rounds=0, controls=[]
    )
    log = run.parent / "run" / "warmup" / "metrics.jsonl"
    for number in (signal.SIGTERM, signal.SIGINT):
        known = log.read_text() if log.exists() else ""
        with start("vlm_distill.cli", "run", run) as process:
            while not log.exists() or log.read_text() == known:
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.01)
            process.send_signal(number)
            output, _ = process.communicate(timeout=100)
        # The launcher's own code, whatever those of its processes were.
        assert process.returncode == 1
        [line] = [one for one in output.splitlines() if "the same command continues" in one and "warm" in one]
        found = re.search(r"warm-up: stopped after step (\d+) of 200; checkpoint in ", line)
        assert found
        steps = [json.loads(row)["step"] for row in log.read_text().splitlines()]
        assert steps == list(range(1, int(found[1]) + 1))
        assert "lost the others" not in output


def test_a_mistake_in_the_config_ends_all_processes_with_code_2_and_its_line(tmp_path: Path) -> None:
    job = torchrun("vlm_distill.cli", "run", new_run(tmp_path / "run"), "data.recipe=nowhere.yaml")
    assert job.returncode == 1
    assert "vlm-distill: error: nowhere.yaml: no such file" in job.output
    assert "RuntimeError" not in job.output
    assert 2 in job.exit_codes.values()
    assert set(job.exit_codes.values()) <= {2, -15, 143}


@pytest.mark.timeout(600)
def test_two_processes_share_the_teacher_cache_and_one_goes_on_with_it(tmp_path: Path) -> None:
    short = {"rounds": 1, "controls": [], "cache": {"tier": "hidden", "batch_size": 4}}
    one, two = new_run(tmp_path / "one", **short), new_run(tmp_path / "two", **short)
    assert main(["run", str(one)]) == 0
    filled = torchrun("vlm_distill.cli", "cache", two)
    assert filled.returncode == 0, filled.output
    assert filled.output.count("teacher: 18 responses, ") == 1
    parts = sorted((two.parent / "run" / "cache" / "teacher").glob("rank_*/*.safetensors"))
    assert [path.parent.name for path in parts] == ["rank_0", "rank_1"]
    job = torchrun("vlm_distill.cli", "run", two)
    assert job.returncode == 0, job.output
    assert "teacher cache: 18 responses" in job.output
    assert_same_students(two.parent, one.parent)
    assert main(["cache", str(two)]) == 0
    assert sorted((two.parent / "run" / "cache" / "teacher").glob("rank_*/*.safetensors")) == parts
