"""Writing the report of a run: everything is read from its folder, so it works at any time, also half way."""

from pathlib import Path
from typing import Any

from vlm_distill.files import atomic_path
from vlm_distill.reporting.charts.intervals import draw_intervals
from vlm_distill.reporting.charts.line_chart import draw_chart, is_log
from vlm_distill.reporting.curves import read_bands, read_charts
from vlm_distill.reporting.dropped import count_tables
from vlm_distill.reporting.gallery import read_gallery
from vlm_distill.reporting.page import render
from vlm_distill.reporting.provenance import fingerprints, headline, versions
from vlm_distill.reporting.response_sets import draw_histograms, read_response_sets
from vlm_distill.reporting.run_files import RunFiles, open_run
from vlm_distill.reporting.scores import read_scores
from vlm_distill.reporting.stage_table import stage_rows
from vlm_distill.reporting.unfinished import missing_parts, notes
from vlm_distill.reporting.verdict import verdict

REPORT = "report.html"


def write_report(folder: Path) -> Path:
    """Write `report.html` into the folder of a run, finished or not, and return its path.

    The page is one file without any reference to another; what the run has not done yet is named in it.

    Raises:
        DataError: the folder is no run folder, or a file in it is damaged.
    """
    html = render(_contents(open_run(folder)))
    with atomic_path(folder / REPORT) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return folder / REPORT


def _contents(run: RunFiles) -> dict[str, Any]:
    """Return what the template shows, by the names that it uses."""
    scores = read_scores(run)
    bands = read_bands(run)
    sets = read_response_sets(run)
    return {
        "name": run.name,
        "missing": missing_parts(run),
        "notes": notes(run),
        "verdict": verdict(run, scores),
        "headline": headline(run),
        "scores": scores,
        "intervals": draw_intervals(scores),
        "stages": stage_rows(run, bands),
        "charts": [
            (chart, is_log(chart), draw_chart(chart, bands)) for chart in read_charts(run, scores, bands)
        ],
        "gallery": read_gallery(run, scores.last.label if scores.last else None),
        "response_sets": sets,
        "histograms": draw_histograms(sets),
        "count_tables": count_tables(run, sets),
        "versions": versions(run),
        "fingerprints": fingerprints(run),
        "config": (run.folder / "config.yaml").read_text(encoding="utf-8"),
    }
