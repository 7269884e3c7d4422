"""Who generates which batch, and where it is stored."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from vlm_distill.errors import DataError
from vlm_distill.generation import executors
from vlm_distill.generation.executors import Batch, executor
from vlm_distill.shards import part_folder

BATCHES = [[number] for number in range(5)]


class Written:
    """Notes which batches went into which folder."""

    def __init__(self) -> None:
        self.batches: dict[Path, list[Batch]] = {}

    def __call__(self, batches: Sequence[Batch], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.batches[folder] = list(batches)


def test_one_process_generates_everything_into_the_folder_itself(tmp_path: Path) -> None:
    written = Written()
    executor()(BATCHES, written, folder=tmp_path)
    assert written.batches == {tmp_path: BATCHES}


def test_ranks_generate_every_batch_once_each_into_its_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "num_processes", lambda: 2)
    written = Written()
    part_folder(tmp_path, 1).mkdir()
    for rank in range(2):
        monkeypatch.setattr(executors, "rank", lambda rank=rank: rank)
        executor()(BATCHES, written, folder=tmp_path)
    assert written.batches == {
        part_folder(tmp_path, 0): [[0], [2], [4]],
        part_folder(tmp_path, 1): [[1], [3]],
    }


def test_a_part_on_another_machine_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "num_processes", lambda: 2)
    with pytest.raises(DataError, match=r"no responses of process rank_1; .*all machines share"):
        executor()(BATCHES, Written(), folder=tmp_path)
