import re
from itertools import pairwise
from pathlib import Path

import pytest

from vlm_distill.data.store import ResponseStore
from vlm_distill.packages import package_version
from vlm_distill.reporting.charts.histogram import bin_edges, draw_histograms
from vlm_distill.reporting.facts import open_run
from vlm_distill.reporting.response_sets import read_response_sets


@pytest.mark.parametrize(("longest", "width"), [(1, 1), (8, 1), (23, 1), (24, 2), (64, 5), (2048, 100)])
def test_bins_are_few_and_hold_every_length(longest: int, width: int) -> None:
    edges = bin_edges(longest)
    assert {second - first for first, second in pairwise(edges)} == {width}
    assert edges[0] == 0
    assert edges[-2] <= longest < edges[-1]
    assert len(edges) <= 25


def test_sets_are_those_of_the_stores_in_order(finished: Path) -> None:
    sets = read_response_sets(open_run(finished))
    assert [one.label for one in sets] == ["teacher", "student round 1", "student round 2"]
    for one in sets:
        stored = ResponseStore(finished / "responses" / one.label.replace(" ", "_")).read()
        assert one.stored.written_by == f"transformers {package_version('transformers')} float32"
        assert one.num_stopped + one.num_cut == len(stored)
        assert one.num_cut == sum(response.finish == "length" for response in stored)
        assert one.num_unanswered == one.counts["prompts"] - len({response.example_id for response in stored})
        assert float(one.mean) == pytest.approx(
            sum(len(response.token_ids) for response in stored) / len(stored), abs=0.051
        )


def test_the_bars_of_a_histogram_are_all_responses(finished: Path) -> None:
    for _, drawing in draw_histograms(read_response_sets(open_run(finished))):
        shares = re.findall(r"tokens: ([\d.]+) % stopped, ([\d.]+) % cut", drawing)
        # Each bar is there twice, once for each colour.
        total = sum(float(stopped) + float(cut) for stopped, cut in shares[::2])
        assert total == pytest.approx(100, abs=0.5)
