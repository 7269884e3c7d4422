"""Steps one by one, plans that change, and run folders without a plan."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.commands import error_of, run
from tests.tiny_run import write_run
from vlm_distill.cli import main
from vlm_distill.runs.plan import read_plan

STAGES = ("data", "student.prepare", "held_out", "teacher", "student", "warmup", "round_1")


def test_steps_in_commands_of_their_own_end_where_one_command_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write_run(tmp_path / "whole", rounds=1, controls=[], cache={"tier": "hidden"})
    assert run(whole) == 0
    apart = write_run(tmp_path / "apart", rounds=1, controls=[], cache={"tier": "hidden"})
    for stage in STAGES:
        assert run(apart, "--stage", stage) == 0
    assert not (tmp_path / "apart" / "run" / "summary.json").exists()
    assert run(apart) == 0
    summaries = [
        json.loads((tmp_path / name / "run" / "summary.json").read_text()) for name in ("whole", "apart")
    ]
    assert summaries[0]["rows"] == summaries[1]["rows"]
    for stage in ("warmup", "round_1"):
        weights = [
            load_file(tmp_path / name / "run" / stage / "model" / "model.safetensors")
            for name in ("whole", "apart")
        ]
        assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_a_step_says_which_others_must_run_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_run(tmp_path, rounds=1, controls=[])
    line = error_of(capsys, run(config, "--stage", "round_1.train"))
    assert "--stage round_1.train: data.prepare, student.prepare, warmup.train, teacher.generate" in line
    assert "must run first" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["student.evaluate", "round_1.evaluate", "held_out.cache"])
def test_nothing_prepared_is_said_as_what_must_run_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    config = write_run(tmp_path, rounds=1, controls=[], cache={"tier": "hidden"})
    assert "data.prepare, " in error_of(capsys, run(config, "--stage", name))


def test_steps_that_wait_for_held_out_prompts_go_on_where_there_are_none(tmp_path: Path) -> None:
    config = write_run(tmp_path, rounds=1, controls=[], cache={"tier": "hidden"})
    whole = "data.overrides=[split.held_out=0]"
    assert run(config, whole, "--stage", "data", "--stage", "student.prepare", "--stage", "held_out") == 0
    assert run(config, whole, "--stage", "student.evaluate") == 0


def test_training_takes_complete_responses_whatever_engine_wrote_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_run(tmp_path, rounds=1, controls=[], evaluate=None)
    assert run(config, "--stage", "data", "--stage", "student", "--stage", "teacher") == 0
    stored = tmp_path / "run" / "responses" / "teacher"
    before = {path: path.stat().st_mtime_ns for path in stored.iterdir()}
    assert run(config, "--stage", "warmup.train", "generate.engine={kind: vllm}") == 0
    assert {path: path.stat().st_mtime_ns for path in stored.iterdir()} == before
    assert (tmp_path / "run" / "warmup" / "stage.json").is_file()


def test_a_damaged_plan_is_written_anew_by_the_next_run(tmp_path: Path) -> None:
    config = write_run(tmp_path, rounds=0, controls=[], evaluate=None, objective=None, train=None)
    assert run(config) == 0
    (tmp_path / "run" / "stages.json").write_text("{")
    assert run(config) == 0
    assert [step.name for step in read_plan(tmp_path / "run")][-1] == "warmup.train"


def test_changed_rounds_and_controls_rewrite_the_plan_and_keep_what_was_trained(tmp_path: Path) -> None:
    config = write_run(tmp_path, rounds=1, evaluate=None)
    assert run(config) == 0
    assert run(config, "rounds=2", "controls=[]") == 0
    planned = {step.name: step.is_planned for step in read_plan(tmp_path / "run")}
    assert planned["round_2.train"]
    assert not planned["seqkd.train"]


def test_check_prints_the_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(write_run(tmp_path, rounds=1, controls=[]))]) == 0
    printed = capsys.readouterr().out
    assert "step: round_1.generate, after data.prepare, student.prepare, warmup.train\n" in printed


EARLIER = {
    None: ("config.yaml without stages.json", "0720526"),
    '{"format_version": 1, "steps": []}': ("stages.json in format 1", "a03bbca"),
}


@pytest.mark.parametrize("plan", EARLIER, ids=["no plan", "format 1"])
@pytest.mark.parametrize("verb", ["run", "check", "cache", "report", "export"])
def test_the_run_folder_of_an_earlier_version_is_refused_and_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, plan: str | None
) -> None:
    config = write_run(tmp_path)
    old = tmp_path / "run"
    old.mkdir()
    (old / "config.yaml").write_text("name: tiny\n")
    if plan is not None:
        (old / "stages.json").write_text(plan)
    before = {path: path.stat().st_mtime_ns for path in (old, *old.rglob("*"))}
    arguments = {
        "run": ["run", str(config)],
        "check": ["check", str(config)],
        "cache": ["cache", str(config), "cache.tier=hidden"],
        "report": ["report", str(old)],
        "export": ["export", str(old), str(tmp_path / "exported")],
    }
    line = error_of(capsys, main(arguments[verb]))
    found, commit = EARLIER[plan]
    assert found in line
    assert f"commit {commit} is the last to read" in line
    assert {path: path.stat().st_mtime_ns for path in (old, *old.rglob("*"))} == before
