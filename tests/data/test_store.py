import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vlm_distill.data.store import ResponseStore, join
from vlm_distill.errors import DataError
from vlm_distill.records import Example, Message, Response, Text, response_id
from vlm_distill.shards import MANIFEST

ENGINE = {"kind": "scripted", "version": "1"}


def response(example: int, *, sample: int = 0) -> Response:
    example_id = f"e-{example}"
    return Response(
        id=response_id(example_id, "teacher", round=0, sample_index=sample),
        example_id=example_id,
        author="teacher",
        round=0,
        sample_index=sample,
        text="Rot, größer\n",
        token_ids=(5, 200_000, 2),
        finish="stop",
        model_fingerprint="f" * 64,
        prompt_ids_hash="a",
        sampling="b",
        token_log_probs=(-0.1, -1e-9, -30.5),
    )


@pytest.fixture
def store(tmp_path: Path) -> ResponseStore:
    return ResponseStore.create_or_resume(tmp_path / "responses", "key one")


def test_responses_read_back_equal_and_in_order(store: ResponseStore) -> None:
    written = [
        response(0),
        replace(response(1), token_log_probs=None, reencoded=True, finish="length", token_ids=()),
    ]
    store.append(written[:1], ENGINE)
    store.append(written[1:], ENGINE)
    assert store.read() == written
    assert ResponseStore(store.folder).read() == written
    assert ResponseStore(store.folder).ids() == {one.id for one in written}
    assert len(store) == 2


def test_an_interrupted_store_resumes_and_a_finished_one_is_complete(store: ResponseStore) -> None:
    store.append([response(0)], ENGINE)
    resumed = ResponseStore.create_or_resume(store.folder, "key one")
    assert (resumed.ids(), resumed.is_complete) == ({response(0).id}, False)
    resumed.append([response(1)], ENGINE)
    resumed.finish()
    again = ResponseStore.create_or_resume(store.folder, "key one")
    assert (again.is_complete, len(again.read())) == (True, 2)


def test_a_killed_writer_leaves_a_readable_store_without_duplicates(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from vlm_distill.data.store import ResponseStore\n"
        "from vlm_distill.records import Response\n"
        "store = ResponseStore.create_or_resume(Path(sys.argv[1]), 'k')\n"
        "for n in range(100000):\n"
        "    store.append([Response(id=str(n), example_id='e', author='teacher', round=0, sample_index=n,\n"
        "        text='t', token_ids=(1,), finish='stop', model_fingerprint='f')], {})\n"
        "    print(n, flush=True)\n"
    )
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "s")], stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert process.stdout is not None
    for _ in range(5):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    last = [int(line) for line in process.stdout.read().split()]
    process.wait()
    process.stdout.close()
    resumed = ResponseStore.create_or_resume(tmp_path / "s", "k")
    numbers = [one.sample_index for one in resumed.read()]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= max(last, default=4) + 1
    resumed.append([response(0)], ENGINE)
    assert len(ResponseStore(tmp_path / "s").read()) == len(numbers) + 1


@pytest.mark.parametrize("again", [[response(0)], [response(1), response(1)]])
def test_an_id_cannot_be_stored_twice(store: ResponseStore, again: list[Response]) -> None:
    store.append([response(0)], ENGINE)
    with pytest.raises(DataError, match=f"1 response ids stand twice, the first is {again[0].id}"):
        ResponseStore(store.folder).append(again, ENGINE)
    assert store.read() == [response(0)]


def test_every_engine_that_wrote_responses_is_named_once(store: ResponseStore) -> None:
    newer = {"kind": "scripted", "room": "9", "version": "2"}
    part = ResponseStore.create_or_resume(store.folder / "rank_1", "key one")
    part.append([response(3)], newer)
    for number, engine in enumerate((ENGINE, newer, ENGINE)):
        store.append([response(number)], engine)
    assert ResponseStore(store.folder).engines == [ENGINE, newer]
    assert ResponseStore(store.folder).written_by == "scripted 1 and scripted 2 room 9"


def test_appending_nothing_writes_no_shard(store: ResponseStore) -> None:
    store.append([], ENGINE)
    assert not list(store.folder.glob("*.parquet"))


def test_another_key_is_an_error_while_there_are_responses(store: ResponseStore) -> None:
    assert ResponseStore.create_or_resume(store.folder, "key two").key == "key two"
    ResponseStore(store.folder).append([response(0)], ENGINE)
    with pytest.raises(DataError, match=r"holds 1 responses .*\(key key two, now key three\)"):
        ResponseStore.create_or_resume(store.folder, "key three")


def test_a_reset_store_is_empty_under_the_new_key(store: ResponseStore) -> None:
    store.append([response(0)], ENGINE)
    store.finish()
    store.reset("key two")
    assert (store.read(), store.ids(), store.key, store.is_complete) == ([], set(), "key two", False)
    assert not list(store.folder.glob("*.parquet"))
    store.append([response(0)], ENGINE)
    assert ResponseStore(store.folder).read() == [response(0)]


def test_a_damaged_shard_or_manifest_is_an_error_that_names_the_file(store: ResponseStore) -> None:
    store.append([response(0)], ENGINE)
    shard = store.folder / "responses-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"responses-00000.parquet: damaged .*generate again"):
        ResponseStore(store.folder).read()
    with pytest.raises(DataError, match=r"responses-00000.parquet: damaged"):
        ResponseStore.create_or_resume(store.folder, "key one").ids()
    (store.folder / MANIFEST).write_text("{")
    with pytest.raises(DataError, match=r"manifest.json: damaged .*generate again"):
        ResponseStore(store.folder)
    shutil.rmtree(store.folder)
    with pytest.raises(DataError, match="no responses are stored here"):
        ResponseStore(store.folder)


def test_the_parts_of_several_processes_are_read_and_deleted_with_the_store(store: ResponseStore) -> None:
    part = ResponseStore.create_or_resume(store.folder / "rank_1", "key one")
    store.append([response(0)], ENGINE)
    part.append([response(1)], ENGINE)
    part.append([response(2)], ENGINE)
    again = ResponseStore(store.folder)
    again.append([response(3)], ENGINE)
    assert ResponseStore(store.folder).read() == [response(number) for number in (0, 3, 1, 2)]
    assert again.ids() == {response(number).id for number in range(4)}
    assert len(ResponseStore(store.folder)) == 4
    with pytest.raises(DataError, match=f"1 response ids stand twice, the first is {response(1).id}"):
        again.append([response(1)], ENGINE)
    again.reset("key two")
    assert not list(store.folder.rglob("*.parquet"))


def test_a_part_under_another_key_is_none_and_a_damaged_one_is_an_error(store: ResponseStore) -> None:
    store.append([response(0)], ENGINE)
    ResponseStore.create_or_resume(store.folder / "rank_0", "other").append([response(0)], ENGINE)
    assert ResponseStore(store.folder).read() == [response(0)]
    part = ResponseStore.create_or_resume(store.folder / "rank_1", "key one")
    part.append([response(1)], ENGINE)
    shard = part.folder / "responses-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"rank_1/responses-00000.parquet: damaged"):
        ResponseStore(store.folder).read()


def examples(count: int) -> list[Example]:
    return [
        Example(id=f"e-{n}", messages=(Message(role="user", content=(Text(text="q"),)),))
        for n in range(count)
    ]


def test_join_groups_by_id_whatever_the_order() -> None:
    responses = [response(1), response(0, sample=1), response(0)]
    assert join(examples(3), responses) == {
        "e-0": [response(0, sample=1), response(0)],
        "e-1": [response(1)],
        "e-2": [],
    }


def test_a_response_without_its_example_is_an_error_with_ids_and_counts() -> None:
    with pytest.raises(
        DataError, match=f"1 of 2 responses .* 1 examples, .* {response(4).id} to example 'e-4'"
    ):
        join(examples(1), [response(0), response(4)])
