"""Where a run comes from, when its steps are made by several starts."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.whole_runs import Copy
from vlm_distill.errors import DataError
from vlm_distill.reporting.facts import open_run
from vlm_distill.reporting.provenance import versions
from vlm_distill.runs.plan import read_plan
from vlm_distill.runs.provenance import (
    PROVENANCE,
    Provenance,
    environment,
    find_provenance,
    record_steps,
    write_provenance,
)


def provenance(**changes: object) -> Provenance:
    now = environment()
    facts = {name: getattr(now, name) for name in ("packages", "python", "machine", "num_processes")}
    facts |= {"seed": 0, "data": "d", "data_counts": {}, "student": "s", "teacher": None}
    facts |= {"unreadable_prompts": {}}
    return Provenance(**{**facts, **changes})


def test_a_later_start_keeps_with_which_versions_earlier_steps_were_made(tmp_path: Path) -> None:
    write_provenance(tmp_path, provenance())
    record_steps(tmp_path, ["data.prepare", "warmup.train"])
    write_provenance(tmp_path, provenance(python="9.9"))
    record_steps(tmp_path, [])
    found = find_provenance(tmp_path)
    assert found is not None
    assert found.python == "9.9"
    assert [*found.steps] == ["data.prepare", "warmup.train"]
    assert found.steps["warmup.train"] == environment()


def test_every_step_of_a_run_has_an_environment_and_the_page_names_those_that_differ(
    finished: Path, copy: Copy
) -> None:
    run = copy(finished)
    found = find_provenance(run)
    assert found is not None
    assert {*found.steps} >= {step.name for step in read_plan(run) if step.kind in ("generate", "train")}
    before = versions(open_run(run))
    write_provenance(run, replace(found, machine="another"))
    [(what, steps)] = [fact for fact in versions(open_run(run)) if fact[0].startswith("made with")]
    assert what == f"made with machine {environment().machine}"
    assert "round_1.train" in steps
    assert not [fact for fact in before if fact[0].startswith("made with")]


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / PROVENANCE).write_text("{}")
    with pytest.raises(DataError, match=r"provenance\.json: damaged .*; delete .*, and the next start"):
        find_provenance(tmp_path)
