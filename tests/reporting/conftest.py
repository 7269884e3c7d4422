"""Two finished runs in miniature, with a hostile prompt and without pictures; tests change copies."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import tiny_text_model
from tests.tiny_run import write_run
from vlm_distill.cli import main
from vlm_distill.config import dump_yaml
from vlm_distill.models.save import save_model

HOSTILE = """</title><script>alert("1")</script><img src=x onerror='alert(2)'> "&amp; {{ 7 * 7 }}"""
Copy = Callable[[Path], Path]


@pytest.fixture(scope="package")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with pictures in which every question about a colour is hostile."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_run(folder)
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    rows = [{**row, "q": HOSTILE if row["id"].endswith("0") else row["q"]} for row in rows]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["run", str(config)]) == 0
    return folder / "run"


@pytest.fixture(scope="package")
def text_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of text models on prompts without labels: agreement with the teacher, no suite."""
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
    assert main(["run", str(config)]) == 0
    return folder / "run"


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """Return a function that copies a run folder to where it may be changed."""

    def copied(run: Path) -> Path:
        return Path(shutil.copytree(run, tmp_path / "run"))

    return copied
