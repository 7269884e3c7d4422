"""A whole run whose student has its teacher's tokens under other ids."""

import json
from pathlib import Path

import pytest

from tests.commands import run
from tests.permuted import permuted, random_places
from tests.tiny import fresh, tiny_llava
from tests.tiny_run import STAGE, write_run
from vlm_distill.data.store import ResponseStore
from vlm_distill.models.save import save_model

UNSTEADY = ("per_second", "accuracy")
# Between them they read responses of both and of the labels, sample in training, and compare with the start.
METHODS = {
    "warmup": {"objective": {"kind": "kd", "responses": "reference"}, "train": STAGE},
    "rounds": 1,
    "controls": [
        {"name": "gkd", "objective": {"kind": "gkd", "on_policy": 0.5}},
        {"name": "dpo", "objective": {"kind": "dpo"}},
    ],
}


def write_pair(folder: Path, **changes: object) -> tuple[Path, Path]:
    """Write a run and its student twice; return the config, and the folder of the permuted student."""
    config = write_run(folder, student={"model": str(folder / "student")}, **METHODS, **changes)
    student = fresh(tiny_llava(0))
    # Far from ties between tokens, which rounding would decide.
    student.model.get_output_embeddings().weight.data *= 50
    save_model(student, folder / "student")
    save_model(permuted(student, random_places(student)), folder / "permuted")
    return config, folder / "permuted"


def numbers(run_folder: Path) -> dict[str, list[float]]:
    """Return every loss that was logged and every measure that was taken, by file."""
    found = {}
    for path in sorted(run_folder.rglob("metrics.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        # At its start DPO is tied everywhere, and rounding decides.
        found[str(path.relative_to(run_folder))] = [
            value for row in rows for name, value in sorted(row.items()) if not name.endswith(UNSTEADY)
        ]
    for path in sorted(run_folder.rglob("agreement.json")):
        values = json.loads(path.read_text())["values"]
        found[str(path.relative_to(run_folder))] = [value for _, value in sorted(values.items())]
    return found


def texts(folder: Path) -> dict[str, str]:
    return {response.id: response.text for response in ResponseStore(folder).read()}


@pytest.mark.parametrize("changes", [(), ("cache.tier=hidden", "controls=[]")], ids=["live", "cached"])
def test_a_run_and_its_twin_with_a_permuted_student_log_the_same_numbers_and_texts(
    tmp_path: Path, changes: tuple[str, ...]
) -> None:
    config, other = write_pair(tmp_path)
    first, second = tmp_path / "run", tmp_path / "moved"
    assert run(config, *changes) == 0
    assert run(config, *changes, f"student.model={other}", f"output={second}") == 0
    expected, found = numbers(first), numbers(second)
    assert {Path(name).name for name in expected} == {"metrics.jsonl", "agreement.json"}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-4, abs=1e-5), name
    for folder in (first / "responses").iterdir():
        assert texts(folder)
        assert texts(folder) == texts(second / "responses" / folder.name)
