"""Whole runs in miniature that many tests read: each is made once, and a test changes only its copy.

Under pytest-xdist the tests that read them are one group, so that one process makes them (see conftest.py).
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import run
from tests.tiny import tiny_text_model
from tests.tiny_run import STAGE, write_run
from vlm_distill.config import dump_yaml
from vlm_distill.models.save import save_model

HOSTILE = """</title><script>alert("1")</script><img src=x onerror='alert(2)'> "&amp; {{ 7 * 7 }}"""
ABOUT = "# Pictures drawn by a test, CC0.\n# Two questions each.\n"
Copy = Callable[[Path], Path]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run beside its config; every question about a colour is hostile."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_run(folder, train={**STAGE, "evaluate_every": 3})
    recipe = folder / "recipe.yaml"
    recipe.write_text(ABOUT + recipe.read_text())
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    rows = [{**row, "q": HOSTILE if row["id"].endswith("0") else row["q"]} for row in rows]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(config) == 0
    return folder / "run"


def config_of(finished: Path) -> Path:
    """Return the config of a run that lies beside it; a copy takes it with an `output` of its own."""
    return finished.with_name("config.yaml")


@pytest.fixture(scope="session")
def cached(finished: Path) -> Path:
    """Return the folder of the finished run's twin that trains from the teacher cache."""
    folder = finished.with_name("cached")
    assert run(config_of(finished), "cache.tier=hidden", f"output={folder}") == 0
    return folder


@pytest.fixture(scope="session")
def text_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of text models on prompts without labels, which has no suite."""
    folder = tmp_path_factory.mktemp("text_only")
    save_model(tiny_text_model(1, hidden_size=32), folder / "teacher")
    save_model(tiny_text_model(0), folder / "small")
    short = {"steps": 1, "batch_size": 4}
    config = write_run(
        folder,
        student={"model": str(folder / "small")},
        warmup=None,
        rounds=1,
        train=short,
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
    return folder / "run"


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """Return a function that copies a run folder to where it may be changed."""

    def copied(run: Path) -> Path:
        return Path(shutil.copytree(run, tmp_path / "run"))

    return copied
