import json
from pathlib import Path

import pytest

from tests.whole_runs import Copy
from vlm_distill.reporting.charts.line_chart import draw_chart, is_log
from vlm_distill.reporting.curves import MAX_POINTS, Band, Chart, read_bands, read_charts
from vlm_distill.reporting.run_files import open_run
from vlm_distill.reporting.scores import read_scores


def charts(folder: Path) -> dict[str, Chart]:
    run = open_run(folder)
    return {one.subject.title: one for one in read_charts(run, read_scores(run), read_bands(run))}


def write_log(folder: Path, rows: list[dict[str, object]]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_stages_follow_one_another_on_one_axis(finished: Path) -> None:
    bands = read_bands(open_run(finished))
    assert [band.label for band in bands] == ["warm-up", "round 1", "round 2", "seqkd"]
    assert [(band.first, band.last) for band in bands[:3]] == [(0, 6), (6, 12), (12, 18)]


def test_logged_values_are_the_points_of_the_curves(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "round_2" / "metrics.jsonl").read_text().splitlines()]
    (loss,) = charts(finished)["Training loss"].series
    assert loss.segments[2] == [(12.0 + row["step"], row["loss"]) for row in rows]
    alphas = {one.label: one.segments for one in charts(finished)["Skew alpha"].series}
    assert alphas["teacher's responses"][1] == [(12.0 + row["step"], row["alpha_teacher"]) for row in rows]


def test_the_kl_after_each_stage_joins_the_rounds_and_not_the_control(finished: Path) -> None:
    live, after = charts(finished)["KL to the teacher, held out"].series
    assert live.label == "during training"
    kl = {row.label: row.token_kl for row in read_scores(open_run(finished)).rows}
    names = ["random", "warm-up", "round 1", "round 2"]
    assert after.segments[0] == [(6.0 * index, kl[name]) for index, name in enumerate(names)]
    assert [value for _, value in after.segments[1]] == [kl["seqkd"]]


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
    drawing = draw_chart(chart, read_bands(open_run(run)))
    assert ">1,000</text>" in drawing
    assert ">0.1</text>" in drawing or ">1</text>" in drawing


@pytest.mark.parametrize(("last", "expected"), [(100, "warm-up"), (3, "w"), (1, None)])
def test_a_stage_is_named_as_far_as_there_is_room(finished: Path, last: int, expected: str | None) -> None:
    chart = charts(finished)["Training loss"]
    bands = [Band(label="warm-up", first=0, last=last), Band(label="round 1", first=last, last=100 + last)]
    drawing = str(draw_chart(chart, bands))
    names = [name for name in ("warm-up", "w") if f">{name}</text>" in drawing]
    assert names == ([expected] if expected else [])
