"""The steps of a run, computed from configs alone."""

from pathlib import Path
from typing import Literal

import pytest

from tests.plain_run import config_of
from vlm_distill.config import Record, apply_overrides, read_yaml, shipped
from vlm_distill.errors import ConfigError, DataError
from vlm_distill.losses import KD, Objective, SkewKL
from vlm_distill.runs.config import RunConfig, load_run
from vlm_distill.runs.plan import Step, choose, plan, read_plan, tracks, write_plan


def names(config: RunConfig) -> list[str]:
    return [step.name for step in plan(config)]


def smoke(*overrides: str) -> RunConfig:
    return load_run("easy_vqa_smoke", overrides)


def step_of(config: RunConfig, name: str) -> Step:
    return next(step for step in plan(config) if step.name == name)


def test_a_run_prepares_measures_warms_up_and_then_repeats_its_rounds() -> None:
    assert names(smoke("rounds=1", "controls=[]")) == [
        "data.prepare",
        "student.prepare",
        "held_out.generate",
        "teacher.evaluate",
        "teacher.generate",
        "student.evaluate",
        "warmup.train",
        "warmup.evaluate",
        "round_1.generate",
        "round_1.train",
        "round_1.evaluate",
    ]


@pytest.mark.parametrize("name", [name for name in shipped("configs") if not name.startswith("launch")])
def test_steps_of_shipped_configs_have_distinct_names_and_stand_behind_what_they_need(name: str) -> None:
    seen: set[str] = set()
    for step in plan(load_run(name)):
        assert step.name not in seen
        assert seen.issuperset(step.needs), step
        seen.add(step.name)


def test_a_train_step_starts_from_the_student_of_the_stage_before() -> None:
    found = {step.name: step.starts_from for step in plan(smoke("rounds=2"))}
    assert found["warmup.train"] == ""
    assert found["round_1.train"] == "warmup"
    assert found["round_2.train"] == "round_1"
    assert found["seqkd.train"] == "warmup", "controls start where the rounds do"


def test_a_control_waits_for_the_rounds_whose_tokens_are_its_budget() -> None:
    control = step_of(smoke("rounds=2"), "seqkd.train")
    assert {"round_1.train", "round_2.train"} <= set(control.needs)
    assert control.settings["budget_of"] == ["round_1.train", "round_2.train"]
    assert [control.settings["train"][key] for key in ("steps", "epochs", "tokens")] == [None, None, None]


def test_only_objectives_on_student_responses_generate_them() -> None:
    found = names(smoke("rounds=1"))
    assert "round_1.generate" in found
    assert "seqkd.generate" not in found
    assert "warmup.generate" not in found


def test_a_run_on_references_alone_has_no_teacher_steps() -> None:
    found = names(load_run("easy_vqa_teacher"))
    assert found == ["data.prepare", "student.prepare", "student.evaluate", "warmup.train", "warmup.evaluate"]


def test_a_cache_is_filled_between_responses_and_training() -> None:
    config = smoke("rounds=1", "cache.tier=hidden")
    found = names(config)
    assert found.index("round_1.generate") < found.index("round_1.cache") < found.index("round_1.train")
    assert "round_1.cache" in step_of(config, "round_1.train").needs
    assert step_of(config, "round_1.cache").settings["of"] == {
        "student": "student_round_1",
        "teacher": "teacher",
    }
    assert "held_out.cache" in found
    assert "warmup.cache" not in found, "SeqKD reads no teacher"


def test_rounds_between_are_measured_only_where_the_config_asks() -> None:
    config = smoke("rounds=3", "evaluate.every_round=false")
    measured = [step.label for step in plan(config) if step.kind == "evaluate" and step.track == "rounds"]
    assert measured == ["round 3"]


def test_a_control_of_several_rounds_is_measured_once_under_its_own_name() -> None:
    values = read_yaml(shipped("configs")["easy_vqa_smoke"])
    values = apply_overrides(values, ["rounds=2"])
    values["controls"] = [{"name": "again", "objective": {"kind": "kd"}, "rounds": 2}]
    config = RunConfig.model_validate(values)
    steps = [step for step in plan(config) if step.track == "again"]
    assert [(step.name, step.label) for step in steps if step.kind != "generate"] == [
        ("again_round_1.train", "again round 1"),
        ("again_round_2.train", "again round 2"),
        ("again_round_2.evaluate", "again"),
    ]
    assert [track.num_rounds for track in tracks(config)] == [1, 2, 2]


def test_live_evaluation_waits_for_the_held_out_answers() -> None:
    config = smoke("train.evaluate_every=1")
    assert "held_out.generate" in step_of(config, "round_1.train").needs
    assert "held_out.generate" not in step_of(smoke(), "round_1.train").needs


def test_stages_json_holds_the_steps_as_they_are(tmp_path: Path) -> None:
    steps = plan(smoke("cache.tier=hidden"))
    write_plan(tmp_path, steps)
    assert read_plan(tmp_path) == [*steps]


class FromFile(Record):
    """A method of another package: a model with a field that is not plain."""

    kind: Literal["from_file"] = "from_file"
    path: Path = Path("weights.json")
    divergence: SkewKL = SkewKL(alpha=0.2)

    def build(self) -> Objective:
        return KD(divergence=self.divergence).build()


def test_an_objective_of_any_fields_is_written_as_json(tmp_path: Path) -> None:
    written = {"kind": "from_file", "path": "weights.json", "divergence": {"kind": "skew_kl", "alpha": 0.2}}
    steps = plan(config_of(objective=FromFile()))
    write_plan(tmp_path, steps)
    [first, _] = [step for step in read_plan(tmp_path) if step.kind == "train" and step.track == "rounds"]
    assert first.settings["objective"] == written


def test_steps_with_results_stay_in_the_plan_when_the_config_drops_them(tmp_path: Path) -> None:
    write_plan(tmp_path, plan(smoke()))
    (tmp_path / "seqkd").mkdir()
    write_plan(tmp_path, plan(smoke("controls=[]")))
    left = [step for step in read_plan(tmp_path) if not step.is_planned]
    assert [step.name for step in left] == ["seqkd.train"]


def test_a_damaged_plan_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "stages.json").write_text('{"format_version": 99, "steps": []}')
    with pytest.raises(DataError, match=r"stages\.json: expected format version 2, got 99"):
        read_plan(tmp_path)


def test_a_stage_stands_for_its_steps_and_unknown_names_are_refused() -> None:
    steps = plan(smoke("rounds=1"))
    assert [step.name for step in choose(steps, ["round_1", "teacher.generate"])] == [
        "teacher.generate",
        "round_1.generate",
        "round_1.train",
        "round_1.evaluate",
    ]
    with pytest.raises(ConfigError, match=r"--stage round_9: no such step.*did you mean 'round_1'"):
        choose(steps, ["round_9"])
