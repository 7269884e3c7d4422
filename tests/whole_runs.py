"""Whole runs in miniature that many tests read: each is made once, and a test changes only its copy."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tests.commands import run
from tests.tiny import tiny_text_model
from tests.tiny_run import STAGE, write_run
from vlm_distill.config import dump_yaml
from vlm_distill.models.save import save_model

HOSTILE = """</title><script>alert("1")</script><img src=x onerror='alert(2)'> "&amp; {{ 7 * 7 }}"""
ABOUT = "# Pictures drawn by a test, CC0.\n# Two questions each.\n"
Copy = Callable[[Path], Path]


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that the first process of pytest-xdist to ask fills, while the others wait."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, done = root / name, root / f"{name}.done"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run beside its config; every question about a colour is hostile."""

    def make(folder: Path) -> None:
        config = write_run(folder, train={**STAGE, "evaluate_every": 3})
        recipe = folder / "recipe.yaml"
        recipe.write_text(ABOUT + recipe.read_text())
        rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
        rows = [{**row, "q": HOSTILE if row["id"].endswith("0") else row["q"]} for row in rows]
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert run(config) == 0

    return once(tmp_path_factory, "finished", make) / "run"


def config_of(finished: Path) -> Path:
    """Return the config that lies beside the finished run; a copy takes it with an `output` of its own."""
    return finished.with_name("config.yaml")


@pytest.fixture(scope="session")
def cached(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the finished run's twin that trains from the teacher cache."""

    def make(folder: Path) -> None:
        assert run(config_of(finished), "cache.tier=hidden", f"output={folder / 'run'}") == 0

    return once(tmp_path_factory, "cached", make) / "run"


@pytest.fixture(scope="session")
def text_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of text models on prompts without labels, which has no suite."""

    def make(folder: Path) -> None:
        save_model(tiny_text_model(1, hidden_size=32), folder / "teacher")
        save_model(tiny_text_model(0), folder / "small")
        config = write_run(
            folder,
            student={"model": str(folder / "small")},
            warmup=None,
            rounds=1,
            train={"steps": 1, "batch_size": 4},
            controls=[],
            evaluate={"agreement_tokens": 5},
        )
        rows = [{"id": f"text-{number}", "q": f"What color is shape {number}?"} for number in range(16)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        columns = {"id": "id", "question": "q"}
        source = {"kind": "files", "paths": [str(folder / "rows.jsonl")], "columns": columns}
        recipe = {"name": "text", "sources": [{"source": source}], "split": {"held_out": 0.4}}
        (folder / "recipe.yaml").write_text(dump_yaml(recipe))
        assert run(config) == 0

    return once(tmp_path_factory, "text_only", make) / "run"


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """Return a function that copies a run folder to where it may be changed."""

    def copied(run: Path) -> Path:
        return Path(shutil.copytree(run, tmp_path / "run"))

    return copied
