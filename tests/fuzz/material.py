"""The valid things that cases are made of: tiny models, a recipe, a suite and finished runs in one folder.

All paths in them are relative to the folder, so that a copy of it is as valid as the folder itself.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.tiny import tiny_text_model
from tests.tiny_run import write_run
from vlm_distill.cli import main
from vlm_distill.config import dump_yaml, read_yaml
from vlm_distill.models.save import save_model

STAGE = {"steps": 2, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3, "checkpoint_every": 1}
RUNS = {
    "run": (),
    "cached": ("cache.tier=hidden", "controls=[]", "evaluate.shuffle_images=false", "output=cached"),
}
"""The finished runs, and the overrides with which they go on."""
TABLE = "table.yaml"
"""A short run on a table of one's own; the table and the output are given as overrides."""


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Make a folder the current one."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def make_material(folder: Path) -> None:
    """Fill an empty folder."""
    with inside(folder):
        config = write_run(
            Path(),
            warmup={"objective": {"kind": "seqkd"}, "train": STAGE},
            rounds=1,
            train={**STAGE, "log_every": 1},
            evaluate={"suite": "suite.yaml", "limit": 4, "agreement_tokens": 2, "agreement_examples": 4},
        )
        save_model(tiny_text_model(1, hidden_size=32), Path("text"))
        _write_table_config(config)
        for arguments in (
            *(("run", "config.yaml", *overrides) for overrides in RUNS.values()),
            ("eval", "teacher", "--suite", "suite.yaml", "--output", "scored", "--device", "cpu"),
        ):
            assert main(list(arguments)) == 0, arguments


def _write_table_config(config: Path) -> None:
    values = read_yaml(config)
    kept = ("name", "device", "teacher", "student", "warmup")
    shorter = {name: values[name] for name in kept} | {
        "data": {"path": "table.jsonl"},
        "rounds": 0,
        "generate": {"sampling": {"temperature": 0.8, "max_new_tokens": 3}},
    }
    Path(TABLE).write_text(dump_yaml(shorter))


def take(material: Path, folder: Path, *names: str) -> None:
    """Copy files and folders of the material, with their times: a run compares those of its tables."""
    for name in names:
        source = material / name
        if source.is_dir():
            shutil.copytree(source, folder / name, dirs_exist_ok=True)
        else:
            shutil.copy2(source, folder / name)
