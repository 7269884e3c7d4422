import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.state_files import change_state, without_checksum
from tests.whole_runs import HOSTILE, Copy
from vlm_distill.data.store import ResponseStore
from vlm_distill.errors import DataError
from vlm_distill.reporting import page, write_report
from vlm_distill.runs.config import load_run
from vlm_distill.runs.plan import plan, write_plan

CELLS = {"td", "th"}
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What a browser would read: elements with their attributes, texts inside each tag, rows of cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), f"{tag}: an attribute stands twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")
        if tag == "tr":
            self.rows.append([])
        elif tag in CELLS:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} is closed out of order"

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data
        if CELLS & set(self.open):
            self.rows[-1][-1] = " ".join([*self.rows[-1][-1].split(), *data.split()])

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [
            own
            for name, own in self.elements
            if name == tag and all(own.get(key) == value for key, value in attributes.items())
        ]

    def text(self) -> str:
        spoken = [one for tag, texts in self.texts.items() if tag not in ("script", "style") for one in texts]
        return " ".join(" ".join(spoken).split())


def read(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def html(finished: Path) -> str:
    path = write_report(finished)
    assert path == finished / "report.html"
    return path.read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_its_links_have_targets(html: str) -> None:
    parsed = Page(html)
    assert not parsed.open
    ids = [own["id"] for _, own in parsed.elements if "id" in own]
    assert len(ids) == len(set(ids))
    targets = {str(own["href"]).removeprefix("#") for own in parsed.all("a")}
    assert len(targets) == 7
    assert targets <= set(ids)
    assert {str(own["aria-labelledby"]) for own in parsed.all("section")} <= set(ids)
    assert all(own.get("alt") for own in parsed.all("img"))
    assert all(own.get("aria-label") for own in parsed.all("svg", role="img"))


def spread(summary: dict[str, Any]) -> None:
    """Give every number of a summary a value of its own: random models all score the same."""
    values = iter(number / 997 for number in range(1, 997))
    for row in summary["rows"]:
        for score in row["scores"].values():
            score |= {"low": next(values), "mean": next(values), "high": next(values)}
        row |= {name: next(values) for name in ("token_kl", "own_kl", "top1", "same_answer")}
        row["image_shuffle_drop"] = {task: next(values) for task in row["image_shuffle_drop"]}
    for one in summary["comparisons"]:
        names = ("low", "difference", "high", "p_value")
        one |= {name: next(values) for name in names}


def test_every_number_of_the_summary_stands_in_its_row(finished: Path, copy: Copy) -> None:
    run = copy(finished)
    summary = json.loads((run / "summary.json").read_text())
    spread(summary)
    change_state(run / "summary.json", **summary)
    rows = read(run).rows
    assert len(summary["rows"]) == 6
    for row in summary["rows"]:
        scores = sorted(row["scores"].items(), key=lambda item: item[0] != "tiny exact_match")
        cells = [
            f"{100 * one['mean']:.1f} {100 * one['low']:.1f} to {100 * one['high']:.1f}" for _, one in scores
        ]
        drop, kl = row["image_shuffle_drop"]["tiny"], row["token_kl"]
        cells += [
            f"{100 * drop:.1f}",
            f"{kl:.4f}",
            f"{row['own_kl']:.4f}",
            f"{100 * row['top1']:.1f}",
            f"{100 * row['same_answer']:.1f}",
        ]
        assert [row["model"], *cells] in rows
    for one in summary["comparisons"]:
        score = f"tiny {'exact_match' if one['subset'] == 'all' else one['subset']}"
        interval = f"{100 * one['low']:+.1f} to {100 * one['high']:+.1f}"
        words = [f"{one['better']} − {one['than']}", score]  # noqa: RUF001 (a minus)
        numbers = [f"{100 * one['difference']:+.1f}", interval, f"{one['p_value']:.4f}"]
        assert [*words, *numbers] in rows


def test_a_hostile_prompt_is_only_text(html: str) -> None:
    parsed = Page(html)
    questions = parsed.texts["h3"]
    assert HOSTILE in questions
    assert parsed.texts["script"] == [(page.HERE / "report.js").read_text(encoding="utf-8")]
    assert all(str(own["src"]).startswith("data:image/png;base64,") for own in parsed.all("img"))
    assert not [name for _, own in parsed.elements for name in own if name.startswith("on")]


def test_the_page_refers_to_nothing_outside(html: str) -> None:
    parsed = Page(html)
    assert "://" not in html
    assert not re.search(r"url\(|@import", html)
    assert not parsed.all("link")
    references = [own[key] for _, own in parsed.elements for key in ("src", "href", "srcset") if key in own]
    assert references
    assert all(str(one).startswith(("#", "data:image/")) for one in references)


def test_the_policy_admits_exactly_the_styles_and_the_script_of_the_page(html: str) -> None:
    parsed = Page(html)
    policy = str(parsed.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"])
    for kind in ("style", "script"):
        (inline,) = parsed.texts[kind]
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert not [own for _, own in parsed.elements if "style" in own]


def test_a_finished_run_lacks_nothing_and_its_page_is_always_the_same(finished: Path, html: str) -> None:
    assert "Not done yet" not in html
    assert write_report(finished).read_text(encoding="utf-8") == html


def test_counts_of_what_was_left_out_appear(finished: Path, copy: Copy) -> None:
    run = copy(finished)
    names = ("prompts", "overlong", "empty", "aborted", "length")
    dropped = dict(zip(names, (1234, 31, 32, 33, 34), strict=True)) | {"stop": 0}
    for folder in ("responses/student_round_1", "eval/round_1/held_out"):
        change_state(run / folder / "counts.json", **dropped)
    found = {name: cells for name, *cells in read(run).rows}
    counts = json.loads((run / "data" / "manifest.json").read_text())["counts"]
    assert found["rows read"] == [f"{counts['read']:,}"]
    assert found["prompts held out"] == [str(counts["held_out"])]
    stored = ResponseStore(run / "responses" / "student_round_1").read()
    num_cut = sum(response.finish == "length" for response in stored)
    num_unanswered = 1234 - len({response.example_id for response in stored})
    expected = ["1,234", "31", "32", "33", str(num_cut), f"{num_unanswered:,}"]
    assert found["student round 1"] == expected
    assert found["held out: round 1"] == ["1,234", "31", "32", "33", "34", "96"]
    assert found["teacher: tiny"][0] == "10"


def test_prompts_that_a_stage_could_not_train_on_appear(finished: Path, copy: Copy) -> None:
    run = copy(finished)
    change_state(run / "round_1" / "stage.json", left_out=4321)
    rows = read(run).rows
    [columns] = [row for row in rows if "prompts left out" in row]
    [round_1] = [row for row in rows if row[0] == "round_1"]
    assert round_1[columns.index("prompts left out")] == "4,321"


def test_a_folder_with_only_a_config_gets_a_page_that_names_every_missing_part(
    finished: Path, tmp_path: Path
) -> None:
    for name in ("config.yaml", "stages.json"):
        shutil.copy(finished / name, tmp_path)
    text = read(tmp_path).text()
    assert "unfinished" in text
    for part in ("data: not prepared yet", "warm-up: not trained yet", "seqkd: not trained yet"):
        assert part in text
    assert "round 2: not evaluated yet" in text
    assert "summary.json: written at the end of the run" in text


def test_an_interrupted_run_shows_what_is_there(finished: Path, copy: Copy) -> None:
    run = copy(finished)
    for path in ("round_2", "eval/round_2", "seqkd", "eval/seqkd"):
        shutil.rmtree(run / path)
    (run / "summary.json").unlink()
    (run / "round_2").mkdir()
    (run / "round_2" / "metrics.jsonl").write_text('{"step": 4, "loss": 0.5}\n{"step": 6, "lo')
    text = read(run).text()
    assert "round 2: training stopped or is going on after step 4" in text
    assert "round 2: 1 unreadable line in the log" in text
    assert "seqkd: not trained yet" in text
    agreement = json.loads((run / "eval" / "round_1" / "agreement.json").read_text())["values"]
    assert f"{agreement['token_kl']:.4f}" in text
    assert "The student of round 1 scores" in text
    result = json.loads((run / "eval" / "round_1" / "tiny" / "results.json").read_text())
    assert f"{100 * result['metrics']['exact_match']['all']['mean']:.1f}" in text


def test_a_summary_older_than_an_evaluation_is_named(finished: Path, copy: Copy) -> None:
    run = copy(finished)
    summary = json.loads((run / "summary.json").read_text())
    rows = [row for row in summary["rows"] if row["model"] != "seqkd"]
    change_state(run / "summary.json", rows=rows)
    assert "older than the evaluation of seqkd" in read(run).text()


def test_a_run_without_evaluation_has_curves_and_responses_and_no_table_of_scores(
    finished: Path, copy: Copy
) -> None:
    run = copy(finished)
    config = without_checksum(run / "config.yaml")
    (run / "config.yaml").write_text(re.sub(r"\nevaluate:\n(  .*\n)+", "\nevaluate: null\n", config))
    for path in ("eval", "held_out"):
        shutil.rmtree(run / path)
    write_plan(run, plan(load_run(str(run / "config.yaml"))))
    (run / "summary.json").unlink()
    parsed = read(run)
    text = parsed.text()
    assert "Nothing is evaluated, because the config has no evaluate." in text
    assert "Not done yet" not in text
    assert "Table of scores" not in [own.get("aria-label") for own in parsed.all("div")]
    assert any(str(own["aria-label"]).startswith("Training loss") for own in parsed.all("svg", role="img"))
    assert any(
        str(own["aria-label"]).startswith("Lengths of the responses") for own in parsed.all("svg", role="img")
    )


def test_a_text_only_run_has_a_gallery_without_pictures_and_a_verdict_from_agreement(text_only: Path) -> None:
    parsed = read(text_only)
    cards = parsed.all("li", **{"class": "card"})
    assert cards
    assert not parsed.all("img")
    assert {own["data-kinds"] for own in cards} <= {"agreement", "disagreement"}
    shows = [own["data-show"] for own in parsed.all("button")]
    assert shows == ["all", "disagreement"]
    assert "gives the teacher's answer to" in parsed.text()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected the folder of a run, found no config\.yaml"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_named_and_the_old_page_stays(finished: Path, copy: Copy) -> None:
    run = copy(finished)
    (run / "report.html").write_text("old")
    (run / "summary.json").write_text("{")
    with pytest.raises(DataError, match=r"summary\.json: damaged"):
        write_report(run)
    assert (run / "report.html").read_text() == "old"
