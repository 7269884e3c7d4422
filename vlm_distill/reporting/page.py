"""The report of a run as one HTML page: its contents, the template, its styles and its script.

Everything is read from the folder of the run, so the page can be written at any time, also half way.
"""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from vlm_distill.evaluation.measures import MEASURES, MEASURES_LEGEND, SCORES_LEGEND, score_column
from vlm_distill.evaluation.table import p_value, per_cent, points
from vlm_distill.files import atomic_path
from vlm_distill.reporting.charts.histogram import draw_histograms
from vlm_distill.reporting.charts.intervals import draw_intervals
from vlm_distill.reporting.charts.line_chart import draw_chart, is_log
from vlm_distill.reporting.charts.svg import number
from vlm_distill.reporting.curves import read_charts
from vlm_distill.reporting.dropped import count_tables
from vlm_distill.reporting.facts import Run, open_run
from vlm_distill.reporting.gallery import read_gallery
from vlm_distill.reporting.provenance import fingerprints, headline, versions
from vlm_distill.reporting.response_sets import read_response_sets
from vlm_distill.reporting.scores import read_scores
from vlm_distill.reporting.unfinished import missing_parts, notes
from vlm_distill.reporting.verdict import verdict

REPORT = "report.html"
HERE = Path(__file__).parent


def write_report(folder: Path) -> Path:
    """Write `report.html` into the folder of a run, finished or not, and return its path.

    The page is one file without any reference to another; what the run has not done yet is named in it.

    Raises:
        DataError: the folder is no run folder, or a file in it is damaged.
    """
    html = _render(_contents(open_run(folder)))
    with atomic_path(folder / REPORT) as temporary:
        temporary.write_text(html, encoding="utf-8", errors="replace")
    return folder / REPORT


def _contents(run: Run) -> dict[str, Any]:
    """Return what the template shows, by the names that it uses."""
    scores = read_scores(run)
    begun = [one for one in run.trainings if one.has_begun]
    sets = read_response_sets(run)
    return {
        "name": run.name,
        "missing": missing_parts(run),
        "notes": notes(run),
        "verdict": verdict(scores),
        "headline": headline(run),
        "scores": scores,
        "intervals": draw_intervals(scores),
        "trainings": begun,
        "charts": [(one, is_log(one), draw_chart(one, begun)) for one in read_charts(run, scores)],
        "gallery": read_gallery(run, scores.last.label if scores.last else None),
        "response_sets": sets,
        "histograms": draw_histograms(sets),
        "count_tables": count_tables(run, sets),
        "versions": versions(run),
        "fingerprints": fingerprints(run),
        "config": (run.folder / "config.yaml").read_text(encoding="utf-8"),
    }


def templates(folder: Path) -> ImmutableSandboxedEnvironment:
    """Return the templates of a folder, which know the measures. Whatever comes from data is escaped."""
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"per_cent": per_cent, "points": points, "p_value": p_value}
    environment.globals |= {"measures": MEASURES, "score_column": score_column}
    environment.globals |= {"scores_legend": SCORES_LEGEND, "measures_legend": MEASURES_LEGEND}
    return environment


def _render(contents: Mapping[str, Any]) -> str:
    """Return the page; styles and script are admitted by their hash."""
    environment = templates(HERE)
    environment.filters |= {"short": _short, "count": _count, "median": median}
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    return environment.get_template("report.html.j2").render(
        contents,
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
    )


def _hash(text: str) -> str:
    """Return what a content security policy calls this inline text."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _short(value: float | None) -> str:
    return "–" if value is None else number(value)  # noqa: RUF001 (a dash for nothing)


def _count(value: float | int | None) -> str:
    return "–" if value is None else f"{value:,.0f}"  # noqa: RUF001
