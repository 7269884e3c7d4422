"""Generation and evaluation by two processes: the same rows as by one, also after a kill."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.color_task import scripted, write_bench
from tests.distributed.torchrun import torchrun
from tests.engines import Recorded, generate, llava_engine, llava_job, prompts_of
from vlm_distill.data.store import ResponseStore
from vlm_distill.errors import EngineError
from vlm_distill.files import read_json
from vlm_distill.generation import work
from vlm_distill.generation.engine import Sampling
from vlm_distill.generation.work import read_counts

JOBS = "tests.distributed.generation_jobs"
NUM_BATCHES = 6


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Add up numbers in the order of the launched processes, which have one thread each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Interrupted(Recorded):
    """Stops at its third batch."""

    def generate(self, examples: Any, sampling: Any) -> Any:
        if len(self.asked) == 2:
            raise EngineError("the power went out")
        return super().generate(examples, sampling)


def as_json(rows: list[Any]) -> list[dict[str, Any]]:
    return [
        {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(row).items()}
        for row in rows
    ]


def test_two_processes_share_the_batches_and_get_the_rows_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, bench = tmp_path, write_bench(tmp_path)
    monkeypatch.setattr(work, "SHARD_SECONDS", 0.0)
    whole = as_json(llava_job(llava_engine(), folder / "whole"))
    with pytest.raises(EngineError, match="power"):
        llava_job(Interrupted(llava_engine()), folder / "half")
    alone = bench.evaluate(scripted(), run="alone")

    job = torchrun(JOBS, "share", folder)
    assert job.returncode == 0, job.output
    first, second = (read_json(folder / f"{rank}.json") for rank in range(2))
    for found in (first, second):
        assert found["fresh"] == found["half"] == whole
        assert found["scores"] == {name: asdict(value["all"]) for name, value in alone.metrics.items()}
    asked = {name: (first[f"asked_{name}"], second[f"asked_{name}"]) for name in ("fresh", "half", "eval")}
    assert [len(one) for one in asked["fresh"]] == [3, 3]
    assert [len(one) for one in asked["half"]] == [2, 2]
    assert [len(one) for one in asked["eval"]] == [4, 4]
    assert all(not set(one) & set(other) for one, other in asked.values())
    assert read_counts(folder / "fresh") == read_counts(folder / "half") == read_counts(folder / "whole")
    for name in ("samples.jsonl", "results.json"):
        assert (folder / "run" / "colors" / name).read_bytes() == (
            folder / "alone" / "colors" / name
        ).read_bytes()

    # What two processes left is complete for one, and replaced where something changed.
    engine = Recorded(llava_engine())
    assert as_json(llava_job(engine, folder / "fresh")) == whole
    assert engine.asked == []
    used = torchrun(JOBS, "stored", folder / "fresh")
    assert used.returncode == 0, used.output
    assert used.output.count(f"the stored rows without an engine: {len(whole)}") == 2
    sampling = Sampling(max_new_tokens=6, num_samples=2, seed=1)
    generate(engine, folder / "fresh", examples=prompts_of("llava"), sampling=sampling)
    assert len(engine.asked) == NUM_BATCHES
    assert not list((folder / "fresh").glob("rank_*"))


@pytest.mark.slow
def test_a_killed_process_ends_the_job_and_one_process_completes_it(tmp_path: Path) -> None:
    job = torchrun(JOBS, "killed", tmp_path / "killed")
    assert job.returncode == 1
    assert job.exit_codes[1] == -9
    parts = [ResponseStore(folder) for folder in sorted((tmp_path / "killed").glob("rank_*"))]
    stored = [{row.example_id for row in part.read()} for part in parts]
    assert len(stored[1]) == 1

    engine = Recorded(llava_engine())
    resumed = llava_job(engine, tmp_path / "killed")
    assert not set(engine.asked) & (stored[0] | stored[1])
    assert len(engine.asked) == NUM_BATCHES - len(stored[0]) - 1
    assert resumed == llava_job(llava_engine(), tmp_path / "whole")


@pytest.mark.slow
def test_an_error_of_one_process_ends_the_job_with_its_line(tmp_path: Path) -> None:
    job = torchrun(JOBS, "broken", tmp_path)
    assert job.returncode == 1
    assert "error: the engine of process 1 is broken" in job.output
    assert job.exit_codes[1] == 2
    assert job.exit_codes[0] in (2, -15)
    assert job.seconds < 60


def test_parts_that_a_cut_short_reset_left_are_not_taken_over(tmp_path: Path) -> None:
    rows, folder = llava_job(llava_engine(), tmp_path / "whole"), tmp_path / "reset"
    part = ResponseStore.create_or_resume(folder / "rank_1", "the key of other settings")
    part.append(rows[:1], {})
    (folder / "rank_2").mkdir()
    engine = Recorded(llava_engine())
    assert llava_job(engine, folder) == rows
    assert len(engine.asked) == NUM_BATCHES
    assert not list(folder.glob("rank_*"))
