"""One reading of a run folder, by its plan alone: no name of a folder or label is taken apart."""

import shutil
from pathlib import Path

import pytest

from tests.plain_run import CONTROLS, config_of, finish, write_folder
from tests.state_files import change_state, without_checksum
from tests.whole_runs import Copy
from vlm_distill.errors import DataError
from vlm_distill.reporting import write_report
from vlm_distill.reporting.facts import Run, open_run
from vlm_distill.reporting.scores import read_scores


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return finish(write_folder(tmp_path / "run", config_of()))


def path(run: Run, stage: str) -> list[str]:
    return [one.label for one in run.path_to(next(one for one in run.trainings if one.step.stage == stage))]


def test_what_led_to_a_student_is_what_its_steps_started_from(plain: Path) -> None:
    run = open_run(plain)
    assert path(run, "round_2") == ["warm-up", "round 1", "round 2"]
    assert path(run, "pound_round_round_2") == ["warm-up", "pound_round round 1", "pound_round round 2"]
    assert path(run, "warm_up") == ["warm-up", "warm_up"]


def test_the_last_student_is_that_of_the_last_round_whatever_controls_are_called(plain: Path) -> None:
    scores = read_scores(open_run(plain))
    assert [row.label for row in scores.rows] == [
        *("student", "warm-up", "round 1", "round 2", "pound_round", "warm_up")
    ]
    assert scores.last is not None
    assert scores.last.label == "round 2"
    assert scores.of("student") == scores.rows[0]


def test_results_of_an_earlier_config_stand_behind_those_of_this_one(plain: Path) -> None:
    write_folder(plain, config_of(rounds=1, controls=CONTROLS[1:]))
    run, scores = open_run(plain), read_scores(open_run(plain))
    assert [one.label for one in run.trainings] == [
        *("warm-up", "round 1", "warm_up", "round 2", "pound_round round 1", "pound_round round 2")
    ]
    assert [row.label for row in scores.rows][-2:] == ["round 2", "pound_round"]
    assert [one.label for one in run.track("rounds")] == ["round 1"]
    assert scores.last is not None
    assert scores.last.label == "round 1", "the config asks for one round"


def test_a_control_with_more_rounds_than_before_is_measured_once(plain: Path) -> None:
    write_folder(plain, config_of(controls=[{**CONTROLS[0], "rounds": 3}]))
    labels = [one.label for one in open_run(plain).evaluations]
    assert labels.count("pound_round") == 1


def test_what_an_earlier_config_left_half_done_is_not_missed(plain: Path) -> None:
    (plain / "round_2" / "stage.json").unlink()
    assert "round 2: not trained yet" in write_report(plain).read_text()
    write_folder(plain, config_of(rounds=1))
    assert "round 2: not trained yet" not in write_report(plain).read_text()


def test_nothing_is_due_where_nothing_can_be_measured(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run", config_of(evaluate={"agreement_examples": 0}))
    assert "not evaluated yet" not in write_report(folder).read_text()


def test_the_config_names_the_student_before_training(finished: Path, text_only: Path) -> None:
    assert open_run(finished).start.label == "random"
    assert open_run(text_only).start.label == "student"


def test_a_run_of_an_earlier_version_is_refused_in_one_line(finished: Path, copy: Copy) -> None:
    run = copy(finished)
    (run / "stages.json").unlink()
    (run / "config.yaml").write_text(without_checksum(run / "config.yaml"))
    with pytest.raises(DataError, match=r"earlier version .*commit 0720526 .*another `output`") as caught:
        open_run(run)
    assert "\n" not in str(caught.value)


def test_a_run_whose_plan_is_gone_is_not_of_an_earlier_version(finished: Path, copy: Copy) -> None:
    run = copy(finished)
    (run / "stages.json").unlink()
    with pytest.raises(DataError, match=r"stages.json: missing; start the run again in this folder"):
        open_run(run)


def test_results_with_permuted_images_are_no_scores_whatever_their_folder_is_called(
    finished: Path, copy: Copy
) -> None:
    run = copy(finished)
    folder = run / "eval" / "round_1"
    shutil.move(folder / "tiny.shuffled_images", folder / "aside")
    (found,) = (one for one in open_run(run).evaluations if one.label == "round 1")
    assert [one.provenance.shuffle_images for one in found.results] == [False]


def test_rows_of_the_summary_come_before_newer_results(finished: Path, copy: Copy) -> None:
    run = copy(finished)
    path = run / "eval" / "round_1" / "agreement.json"
    change_state(path, values={"token_kl": 99.0})
    (row,) = (one for one in read_scores(open_run(run)).rows if one.label == "round 1")
    assert row.values["token_kl"] != 99.0
    (run / "summary.json").unlink()
    (row,) = (one for one in read_scores(open_run(run)).rows if one.label == "round 1")
    assert row.values["token_kl"] == 99.0
