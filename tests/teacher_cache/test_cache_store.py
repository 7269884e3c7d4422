"""The teacher cache on disk: by id, under a key, in shards that a kill cannot halve."""

import resource
import signal
from pathlib import Path

import pytest
import torch

from tests.stages import response
from tests.tiny import example
from vlm_distill.errors import DataError
from vlm_distill.teacher_cache.store import CachedResponse, CacheReader, CacheStore, content_hash
from vlm_distill.teacher_cache.tiers import Hidden

KEY = {"teacher": "t", "tier": "hidden"}


def rows_of(name: str, count: int, *, content: str = "c") -> CachedResponse:
    tensors = {"hidden": torch.full((count, 3), float(ord(name)))}
    return CachedResponse(response_id=name, content=content, prompt_ids_hash="p", tensors=tensors)


def filled(folder: Path) -> CacheStore:
    store = CacheStore(folder, KEY)
    store.append([rows_of("a", 2), rows_of("b", 1)])
    store.append([rows_of("c", 3)])
    return store


def test_rows_are_joined_by_id_in_any_order(tmp_path: Path) -> None:
    filled(tmp_path)
    found = CacheReader([CacheStore(tmp_path, KEY)], tier=Hidden()).read(["c", "a", "a"])["hidden"]
    assert found[:, 0].tolist() == [99.0] * 3 + [97.0] * 4
    with pytest.raises(DataError, match=r"1 of 2 responses are not in it \(first: x\)"):
        CacheReader([CacheStore(tmp_path, KEY)], tier=Hidden()).read(["a", "x"])


def test_a_response_without_tokens_has_no_rows(tmp_path: Path) -> None:
    store = CacheStore(tmp_path, KEY)
    store.append([rows_of("a", 0), rows_of("b", 1)])
    assert CacheReader([store], tier=Hidden()).read(["a"])["hidden"].shape == (0, 3)
    assert CacheReader([store], tier=Hidden()).read(["a", "b"])["hidden"].shape == (1, 3)


def test_stores_of_several_processes_and_of_several_sets_are_read_together(tmp_path: Path) -> None:
    CacheStore(tmp_path / "x", KEY, part=0).append([rows_of("a", 1)])
    CacheStore(tmp_path / "x", KEY, part=1).append([rows_of("b", 1)])
    CacheStore(tmp_path / "y", KEY).append([rows_of("c", 1)])
    stores = [CacheStore(tmp_path / name, KEY, part=2) for name in "xy"]
    found = CacheReader(stores, tier=Hidden()).read(["c", "b", "a"])["hidden"]
    assert found[:, 0].tolist() == [99.0, 98.0, 97.0]
    assert stores[0].missing({"a": "c", "b": "c", "z": "c"}) == {"z"}


def test_more_shards_than_open_files_are_readable(tmp_path: Path) -> None:
    store = CacheStore(tmp_path, KEY)
    names = [chr(100 + index) for index in range(80)]
    for name in names:
        store.append([rows_of(name, 1)])
    reader = CacheReader([store], tier=Hidden())
    for _ in range(2):
        assert reader.read(names)["hidden"][:, 0].tolist() == [float(ord(name)) for name in names]
    assert len(reader._handles) <= 64


def test_a_changed_key_is_refused_by_name(tmp_path: Path) -> None:
    filled(tmp_path)
    with pytest.raises(DataError, match=r"was computed with another teacher; delete the folder"):
        CacheStore(tmp_path, {**KEY, "teacher": "other"})
    with pytest.raises(DataError, match=r"another tier, k;"):
        CacheStore(tmp_path, {**KEY, "tier": "top_k", "k": 4})


def test_changed_prompts_images_and_responses_are_noticed(tmp_path: Path) -> None:
    prompt, other = example("e", "red?", num_images=1), example("e", "blue?", num_images=1)
    picture = example("x", "red?", num_images=1)
    one = response("e", "teacher", (1, 2))
    contents = {
        content_hash(prompt, one),
        content_hash(other, one),
        content_hash(picture, one),  # its image has another hash
        content_hash(prompt, response("e", "teacher", (1, 3))),
    }
    assert len(contents) == 4
    store = filled(tmp_path)
    assert store.changed({"a": "c", "b": "other", "z": "new"}) == ["b"]


def test_a_disk_that_fills_up_is_one_line(tmp_path: Path) -> None:
    store = filled(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Beyond the limit a write fails as on a full disk; the signal that would come with it is ignored.
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        # safetensors has an error of its own for it.
        with pytest.raises(DataError, match=r"rows-00002.safetensors: cannot be written .*make room"):
            store.append([rows_of("d", 5000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert CacheStore(tmp_path, KEY).places.keys() == {"a", "b", "c"}


@pytest.mark.parametrize("where", [4, -1], ids=["header", "rows"])
def test_a_damaged_shard_is_refused(tmp_path: Path, where: int) -> None:
    filled(tmp_path)
    path = tmp_path / "rank_0" / "rows-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[where] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"rows-00001.safetensors: damaged .*; delete"):
        CacheStore(tmp_path, KEY).verify()


def test_a_missing_shard_and_a_damaged_manifest_are_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "rank_0" / "rows-00000.safetensors").unlink()
    with pytest.raises(DataError, match="the shard is missing"):
        CacheStore(tmp_path, KEY)
    (tmp_path / "rank_0" / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest.json: damaged"):
        CacheStore(tmp_path, KEY)
