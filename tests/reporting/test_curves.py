import json
from pathlib import Path

import pytest

from tests.whole_runs import Copy
from vlm_distill.reporting.charts.line_chart import draw_chart, is_log
from vlm_distill.reporting.curves import MAX_POINTS, Chart, read_charts
from vlm_distill.reporting.facts import Training, open_run
from vlm_distill.reporting.scores import read_scores
from vlm_distill.runs.plan import ROUNDS, WARMUP, Step
from vlm_distill.training.train import Trained


def charts(folder: Path) -> dict[str, Chart]:
    run = open_run(folder)
    return {one.subject.title: one for one in read_charts(run, read_scores(run))}


def write_log(folder: Path, rows: list[dict[str, object]]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_stages_follow_one_another_on_one_axis(finished: Path) -> None:
    trainings = open_run(finished).trainings
    assert [one.label for one in trainings] == ["warm-up", "round 1", "round 2", "seqkd"]
    assert [(one.start, one.end) for one in trainings[:3]] == [(0, 6), (6, 12), (12, 18)]


def test_logged_values_are_the_points_of_the_curves(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "round_2" / "metrics.jsonl").read_text().splitlines()]
    (loss,) = charts(finished)["Training loss"].series
    assert loss.segments[2] == [(12.0 + row["step"], row["loss"]) for row in rows]
    alphas = {one.label: one.segments for one in charts(finished)["Skew alpha"].series}
    assert alphas["teacher's responses"][1] == [(12.0 + row["step"], row["alpha_teacher"]) for row in rows]


def test_the_kl_after_each_stage_joins_the_rounds_and_not_the_control(finished: Path) -> None:
    live, after = charts(finished)["KL to the teacher, held out"].series
    assert live.label == "during training"
    kl = {row.label: row.values["token_kl"] for row in read_scores(open_run(finished)).rows}
    names = ["random", "warm-up", "round 1", "round 2"]
    assert after.segments[0] == [(6.0 * index, kl[name]) for index, name in enumerate(names)]
    assert [value for _, value in after.segments[1]] == [kl["seqkd"]]


def test_the_terms_that_have_a_title_share_a_chart(finished: Path) -> None:
    labels = [one.label for one in charts(finished)["Terms of the loss"].series]
    assert sorted(labels) == ["negative log-likelihood", "skew KL", "skew reverse KL"]


def test_metrics_that_nobody_knows_yet_get_a_chart(finished: Path, copy: Copy) -> None:
    run = copy(finished)
    rows = [
        {"step": 1, "fraction": 0.1, "margin_of_pairs": 0.5, "held_out_kl": 2.0, "words": "none"},
        {"step": 2, "fraction": 0.2, "margin_of_pairs": float("nan"), "held_out_kl": 1.0},
    ]
    write_log(run / "warmup", rows)
    found = charts(run)
    assert found["Margin of pairs"].series[0].segments == [[(1.0, 0.5)]]
    assert found["Margin of pairs"].num_left_out == 1
    live = {one.label: one.segments for one in found["KL to the teacher, held out"].series}
    assert live["during training"][0] == [(1.0, 2.0), (2.0, 1.0)]
    assert not {"Words", "Fraction", "Step"} & set(found)


def test_a_long_log_is_thinned_by_means(finished: Path, copy: Copy) -> None:
    run = copy(finished)
    write_log(run / "warmup", [{"step": step, "loss": step % 2} for step in range(1, 4 * MAX_POINTS + 1)])
    chart = charts(run)["Training loss"]
    (points,) = chart.series[0].segments[:1]
    assert chart.is_averaged
    assert len(points) == MAX_POINTS
    assert {value for _, value in points} == {0.5}


def test_factors_show_on_a_logarithmic_axis(finished: Path, copy: Copy) -> None:
    run = copy(finished)
    write_log(run / "warmup", [{"step": 1, "loss": 1000.0}, {"step": 6, "loss": 1.0}])
    chart = charts(run)["Training loss"]
    assert is_log(chart)
    drawing = draw_chart(chart, open_run(run).trainings)
    assert ">1,000</text>" in drawing
    assert ">0.1</text>" in drawing or ">1</text>" in drawing


def training(label: str, track: str, *, start: int, end: int) -> Training:
    step = Step(stage="", kind="train", label=label, folder="", track=track, round=12)
    result = Trained(key="", steps=end - start, tokens=0, objective={}, left_out=0, seconds={})
    return Training(step=step, folder=Path(), result=result, rows=[], num_unreadable=0, start=start)


@pytest.mark.parametrize(
    ("width", "expected"),
    [(100, ["warm-up", "round 12"]), (20, ["w", "r12"]), (12, ["w", "12"]), (3, [])],
)
def test_a_stage_is_named_as_far_as_there_is_room(finished: Path, width: int, expected: list[str]) -> None:
    first = training("warm-up", WARMUP, start=0, end=width)
    second = training("round 12", ROUNDS, start=width, end=2 * width)
    third = training("the rest", "the rest", start=2 * width, end=220)
    drawing = str(draw_chart(charts(finished)["Training loss"], [first, second, third]))
    names = ("warm-up", "w", "round 12", "r12", "12")
    assert [name for name in names if f'text-anchor="middle">{name}</text>' in drawing] == expected
