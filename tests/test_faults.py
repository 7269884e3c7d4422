"""Storage, memory and libraries of file formats: one line with what to do, and nothing half-written."""

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from tests.commands import error_of, run
from tests.tiny import tiny_text_model
from tests.tiny_run import write_run
from vlm_distill import cli
from vlm_distill.errors import DataError, StorageError
from vlm_distill.faults import explained, writing
from vlm_distill.files import atomic_path, write_json
from vlm_distill.models.save import save_model


def _raised(action: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 (of whichever library)
        action()
    return caught.value


@pytest.fixture
def no_room() -> Iterator[None]:
    """Let every write beyond 4 kB fail as on a full disk; the signal that would come with it is ignored."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("x" * 100_000),
    "torch": lambda path: torch.save(torch.ones(100_000), path),
    "safetensors": lambda path: save_file({"a": torch.ones(100_000)}, path),
    "parquet": lambda path: pq.write_table(pa.table({"a": np.random.default_rng(0).random(100_000)}), path),
    "tokenizers": lambda path: tiny_text_model(0).tokenizer.backend_tokenizer.save(str(path)),
    "pillow": lambda path: Image.effect_noise((300, 300), 90).save(path, format="PNG"),
}


@pytest.mark.parametrize("library", WRITERS)
def test_what_a_library_says_of_a_full_disk_names_the_file_and_what_to_do(
    tmp_path: Path, no_room: None, library: str
) -> None:
    with pytest.raises(StorageError) as caught, writing(tmp_path / "target"):
        WRITERS[library](tmp_path / "written")
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / 'target'}: cannot be written (")
    assert "make room" in line
    assert "start the same command again: what is stored is kept" in line


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageError, match="No space left"):
        write()
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_folder_where_a_file_belongs_and_a_file_where_a_folder_belongs_are_said(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        StorageError, match=r"folder: cannot be written \(Is a directory\); move the folder away"
    ):
        write_json(tmp_path / "folder", {})
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/x: cannot be written .*move away what stands in its place"):
        write_json(tmp_path / "file" / "x", {})


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_a_lack_of_memory_is_one_line_with_what_to_do(error: Exception) -> None:
    line = explained(error)
    assert line is not None
    assert line.startswith("out of memory")
    assert (
        "use smaller batches (micro_batch_size, batch_size) or free memory, and start the same command again"
        in line
    )


def test_a_collective_without_its_other_processes_is_one_line() -> None:
    error = RuntimeError("[/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:41000")
    line = explained(error)
    assert line is not None
    assert line.startswith("lost another process of this job, whose own lines say why ([/gloo/")


def test_a_tensor_beyond_all_memory_is_a_lack_of_memory() -> None:
    line = explained(_raised(lambda: torch.empty(2**55)))
    assert line is not None
    assert line.startswith("out of memory")


def test_errors_of_file_formats_are_one_line_and_those_of_ours_are_none(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("not one of them")
    readers: list[Callable[[], object]] = [
        lambda: load_file(tmp_path / "bad"),
        lambda: pq.read_table(tmp_path / "bad"),
        lambda: Tokenizer.from_file(str(tmp_path / "bad")),
    ]
    for read in readers:
        assert explained(_raised(read)) is not None
    for error in (ValueError("x"), KeyError("x"), RuntimeError("shape mismatch"), AssertionError()):
        assert explained(error) is None


def test_a_user_error_inside_a_write_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^mine") as caught, writing(tmp_path):
        raise DataError("mine (os error 28)")
    assert type(caught.value) is DataError


def test_the_command_line_prints_a_lack_of_memory_and_ends_with_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(cli, "_first_comment", fail)
    assert "error: out of memory; use smaller batches" in error_of(capsys, cli.main(["ls"]))


class Faults:
    """Fails the call of `os.replace`, `os.fsync` and `os.mkdir` with a number, counted over all three."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_calls, self.fails_at = 0, -1
        for name in ("replace", "fsync", "mkdir"):
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            self.num_calls += 1
            if self.num_calls == self.fails_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))
            return real(*arguments, **options)

        return call


def _write_text_run(folder: Path) -> Path:
    save_model(tiny_text_model(1, hidden_size=32), folder / "teacher")
    save_model(tiny_text_model(0), folder / "small")
    stage = {"steps": 2, "batch_size": 4, "checkpoint_every": 1, "log_every": 1, "learning_rate": 1e-3}
    config = write_run(
        folder,
        student={"model": str(folder / "small")},
        warmup=None,
        rounds=1,
        train=stage,
        controls=[],
        evaluate={"agreement_tokens": 5},
    )
    rows = [{"id": f"text-{number}", "q": f"What color is shape {number}?"} for number in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {
        "kind": "files",
        "paths": [str(folder / "rows.jsonl")],
        "columns": {"id": "id", "question": "q"},
    }
    recipe = {"name": "text", "sources": [{"source": source}], "split": {"held_out": 0.4}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return config


@pytest.mark.slow
def test_a_run_goes_on_after_any_write_that_failed_and_ends_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _write_text_run(tmp_path)
    faults = Faults(monkeypatch)
    assert run(config) == 0
    total, calm = faults.num_calls, Path(shutil.move(tmp_path / "run", tmp_path / "calm"))
    num_failed = 0
    for number in range(2, total, max(1, total // 25)):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        faults.num_calls, faults.fails_at = 0, number
        code = run(config)
        faults.fails_at = -1
        if code != 0:
            num_failed += 1
            assert "No space left on device; make room" in error_of(capsys, code).replace("); ", "; ")
            assert run(config) == 0
        for name in ("summary.json", "data/train.jsonl", "round_1/model/model.safetensors"):
            assert (tmp_path / "run" / name).read_bytes() == (calm / name).read_bytes(), (number, name)
        left = [path.name for path in (tmp_path / "run").rglob(".*") if path.name != ".lock"]
        assert not left
    assert num_failed > 10
