"""The manifest of a folder and the shards that it lists, with text as their codec."""

import json
import resource
import signal
from pathlib import Path

import pytest

from vlm_distill.errors import DataError
from vlm_distill.shards import MANIFEST, Shards, part_folder, read_parts

REMEDY = "start anew"


def write(shards: Shards, text: str) -> Path:
    return shards.append(
        lambda path: path.write_text(text) and None, name="{}.txt", num_rows=1, writer={"by": "a test"}
    )


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    found = Shards(folder=tmp_path / "store", key={"of": "one"}, remedy=REMEDY)
    write(found, "first")
    write(found, "second")
    return found


def read(folder: Path) -> Shards:
    return Shards.read(folder, remedy=REMEDY)


def test_what_is_listed_reads_back_verified_and_in_order(shards: Shards) -> None:
    assert read(shards.folder) == shards
    assert [path.read_text() for path in read(shards.folder).verified()] == ["first", "second"]
    assert read(shards.folder).num_complete is None
    shards.finish(num_rows=3)
    assert read(shards.folder).num_complete == 3


def test_a_shard_that_no_manifest_lists_does_not_count_and_is_overwritten(shards: Shards) -> None:
    before = (shards.folder / MANIFEST).read_text()
    write(shards, "third")
    # As if the process had died between renaming the shard and renaming the manifest.
    (shards.folder / MANIFEST).write_text(before)
    resumed = read(shards.folder)
    assert len(resumed.paths()) == 2
    write(resumed, "another third")
    assert [path.read_text() for path in read(shards.folder).verified()] == [
        "first",
        "second",
        "another third",
    ]
    assert len(list(shards.folder.glob("*.txt"))) == 3


def test_a_reset_deletes_what_was_listed_and_keeps_its_new_key(shards: Shards) -> None:
    shards.finish(num_rows=1)
    shards.reset({"of": "two"})
    assert read(shards.folder) == Shards(folder=shards.folder, key={"of": "two"}, remedy=REMEDY)
    assert not list(shards.folder.glob("*.txt"))


def test_a_missing_or_changed_shard_is_named_with_what_to_do(shards: Shards) -> None:
    changed = shards.folder / "1.txt"
    changed.write_text("Second")
    with pytest.raises(DataError, match=r"1\.txt: damaged \(not what was written\); start anew"):
        list(shards.verified())
    changed.unlink()
    with pytest.raises(DataError, match=r"1\.txt: the shard is missing; start anew"):
        shards.paths()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format_version": 3}'])
def test_a_damaged_manifest_is_named_with_what_to_do(shards: Shards, content: str) -> None:
    (shards.folder / MANIFEST).write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json: damaged \(.*\); start anew"):
        read(shards.folder)


def test_another_format_is_refused(shards: Shards) -> None:
    (shards.folder / MANIFEST).write_text(json.dumps({"format_version": 7}))
    with pytest.raises(
        DataError,
        match=r"expected format version 3, got 7: .*; start anew",
    ):
        read(shards.folder)


def test_a_disk_that_fills_up_is_named_and_loses_nothing_stored(shards: Shards) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Beyond the limit a write fails as on a full disk; the signal that would come with it is ignored.
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(DataError, match=r"2\.txt: cannot be written .*make room"):
            write(shards, "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(list(read(shards.folder).verified())) == 2
    assert not list(shards.folder.rglob("*.tmp"))


def test_parts_are_read_together_and_one_without_a_manifest_is_none(tmp_path: Path) -> None:
    for number in (1, 0):
        write(Shards(folder=part_folder(tmp_path, number), key="k", remedy=REMEDY), str(number))
    part_folder(tmp_path, 2).mkdir()
    parts = read_parts(tmp_path, remedy=REMEDY)
    assert [path.read_text() for part in parts for path in part.verified()] == ["0", "1"]
