"""One reading of a run folder, by its plan alone: no name of a folder or label is taken apart."""

import json
import shutil
from pathlib import Path

import pytest

from tests.reporting.conftest import Copy
from vlm_distill.config import dump_yaml
from vlm_distill.errors import DataError
from vlm_distill.files import write_json
from vlm_distill.reporting import write_report
from vlm_distill.reporting.facts import Run, open_run
from vlm_distill.reporting.scores import read_scores
from vlm_distill.runs.config import RunConfig
from vlm_distill.runs.plan import plan, write_plan

# Names that say nothing, and one that says something wrong.
CONTROLS = [
    {"name": "pound_round", "objective": {"kind": "kd"}, "rounds": 2, "learning_rate": 0.5},
    {"name": "warm_up", "objective": {"kind": "seqkd"}},
]


def config_of(**changes: object) -> RunConfig:
    stage = {"steps": 2, "learning_rate": 1e-3}
    values = {
        "name": "made_up",
        "data": {"recipe": "easy_vqa"},
        "teacher": {"model": "some/teacher"},
        "student": {"model": "some/student"},
        "warmup": {"objective": {"kind": "seqkd"}, "train": stage},
        "rounds": 2,
        "objective": {"kind": "distillm2"},
        "train": stage,
        "controls": CONTROLS,
        "evaluate": {},
        **changes,
    }
    return RunConfig.model_validate(values)


def write_folder(folder: Path, config: RunConfig) -> Path:
    """Write the config and plan of a run; where there is a plan already, the run changes."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(dump_yaml(config.model_dump(mode="json")))
    write_plan(folder, plan(config))
    return folder


def train(folder: Path, *names: str) -> None:
    for name in names:
        write_json(folder / name / "stage.json", {"steps": 2, "tokens": 20, "left_out": 0})


def evaluate(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        values = {"token_kl": 1.0 + number, "own_kl": None, "top1": 0.5, "same_answer": 0.5}
        write_json(folder / "eval" / name / "agreement.json", {"values": values})


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    folder = write_folder(tmp_path / "run", config_of())
    train(folder, "warmup", "round_1", "round_2", "pound_round_round_1", "pound_round_round_2", "warm_up")
    evaluate(folder, "student", "warm-up", "round_1", "round_2", "pound_round", "warm_up")
    return folder


def path(run: Run, stage: str) -> list[str]:
    return [one.label for one in run.path_to(next(one for one in run.trainings if one.step.stage == stage))]


def test_what_led_to_a_student_is_what_its_steps_started_from(made_up: Path) -> None:
    run = open_run(made_up)
    assert path(run, "round_2") == ["warm-up", "round 1", "round 2"]
    assert path(run, "pound_round_round_2") == ["warm-up", "pound_round round 1", "pound_round round 2"]
    assert path(run, "warm_up") == ["warm-up", "warm_up"]


def test_the_last_student_is_that_of_the_last_round_whatever_controls_are_called(made_up: Path) -> None:
    scores = read_scores(open_run(made_up))
    assert [row.label for row in scores.rows] == [
        *("student", "warm-up", "round 1", "round 2", "pound_round", "warm_up")
    ]
    assert scores.last is not None
    assert scores.last.label == "round 2"
    assert scores.start is not None
    assert scores.start.label == "student"


def test_results_of_an_earlier_config_stand_behind_those_of_this_one(made_up: Path) -> None:
    write_folder(made_up, config_of(rounds=1, controls=CONTROLS[1:]))
    run, scores = open_run(made_up), read_scores(open_run(made_up))
    assert [one.label for one in run.trainings] == [
        *("warm-up", "round 1", "warm_up", "round 2", "pound_round round 1", "pound_round round 2")
    ]
    assert [row.label for row in scores.rows][-2:] == ["round 2", "pound_round"]
    assert scores.last is not None
    assert scores.last.label == "round 1", "the config asks for one round"


def test_a_control_with_more_rounds_than_before_is_measured_once(made_up: Path) -> None:
    write_folder(made_up, config_of(controls=[{**CONTROLS[0], "rounds": 3}]))
    labels = [one.label for one in open_run(made_up).evaluations]
    assert labels.count("pound_round") == 1


def test_what_an_earlier_config_left_half_done_is_not_missed(made_up: Path) -> None:
    (made_up / "round_2" / "stage.json").unlink()
    assert "round 2: not trained yet" in write_report(made_up).read_text()
    write_folder(made_up, config_of(rounds=1))
    assert "round 2: not trained yet" not in write_report(made_up).read_text()


def test_nothing_is_due_where_nothing_can_be_measured(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run", config_of(evaluate={"agreement_examples": 0}))
    assert "not evaluated yet" not in write_report(folder).read_text()


def test_the_config_names_the_student_before_training(finished: Path, text_only: Path) -> None:
    assert open_run(finished).start.label == "random"
    assert open_run(text_only).start.label == "student"


def test_a_run_of_an_earlier_version_is_refused_in_one_line(finished: Path, copy: Copy) -> None:
    run = copy(finished)
    (run / "stages.json").unlink()
    with pytest.raises(DataError, match=r"earlier version .*commit 0720526 .*another `output`") as caught:
        open_run(run)
    assert "\n" not in str(caught.value)


def test_results_with_permuted_images_are_no_scores_whatever_their_folder_is_called(
    finished: Path, copy: Copy
) -> None:
    run = copy(finished)
    folder = run / "eval" / "round_1"
    shutil.move(folder / "tiny.shuffled_images", folder / "aside")
    (found,) = (one for one in open_run(run).evaluations if one.label == "round 1")
    assert [one["provenance"]["shuffle_images"] for one in found.results] == [False]


def test_rows_of_the_summary_come_before_newer_results(finished: Path, copy: Copy) -> None:
    run = copy(finished)
    path = run / "eval" / "round_1" / "agreement.json"
    path.write_text(json.dumps({"values": {"token_kl": 99.0}}))
    (row,) = (one for one in read_scores(open_run(run)).rows if one.label == "round 1")
    assert row.values["token_kl"] != 99.0
    (run / "summary.json").unlink()
    (row,) = (one for one in read_scores(open_run(run)).rows if one.label == "round 1")
    assert row.values["token_kl"] == 99.0
