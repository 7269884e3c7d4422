import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tests.plain_run import config_of, finish, write_folder
from vlm_distill.config import parse_yaml
from vlm_distill.data.dataset import Manifest
from vlm_distill.errors import ConfigError
from vlm_distill.evaluation.measures import MEASURES, Measure
from vlm_distill.evaluation.results import Numbers, Provenance
from vlm_distill.evaluation.statistics import clustered_mean
from vlm_distill.generation.work import Counts
from vlm_distill.markdown import inline_code
from vlm_distill.publishing.export import choose_training
from vlm_distill.publishing.model_card import CARD, Exported, Student, card_settings, model_card
from vlm_distill.reporting import write_report
from vlm_distill.reporting.facts import open_run
from vlm_distill.runs.summary import Summary
from vlm_distill.state import write_state

EXPORTED = Exported(
    title="plain, round 2",
    name=None,
    reads_images=True,
    num_parameters=1_234_567,
    dtype="float32",
    converted=False,
    fingerprint="f" * 64,
    source_fingerprint="a" * 64,
    settings={},
)
KEYS = ("license", "base_model", "datasets", "language")


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return finish(write_folder(tmp_path / "run", config_of()))


def card_of(folder: Path, stage: str | None = None, exported: Exported = EXPORTED) -> str:
    run = open_run(folder)
    return model_card(exported, Student(run=run, training=choose_training(run, stage)))


def summarise(folder: Path, label: str, **values: Any) -> None:
    """Write a summary in which one model is that of the card."""
    scores = {"vqa exact": {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 1234}}
    row = {"model": label, "fingerprint": EXPORTED.source_fingerprint, "scores": scores}
    row |= {"image_shuffle_drop": {}, **dict.fromkeys(MEASURES), **values}
    write_state(folder / "summary.json", Summary(rows=[row], comparisons=[]))


def write_result(folder: Path) -> None:
    unknown = clustered_mean([], [])
    metrics = {
        "exact": {"all": replace(unknown, mean=0.51239), "open": replace(unknown, mean=0.1)},
        "soft": {"all": unknown},
    }
    provenance = Provenance(
        key="k",
        asking_hash="a",
        model_fingerprint=EXPORTED.source_fingerprint,
        engines=[],
        sampling={},
        limit=None,
        shuffle_images=False,
        data_counts={},
        responses={},
        packages={},
    )
    numbers = Numbers(
        task="vqa",
        version=1,
        task_hash="t",
        verified=True,
        scorers={},
        counts={},
        metrics=metrics,
        provenance=provenance,
        predictions_hash="p",
    )
    write_state(folder / "eval" / "round_2" / "vqa" / "results.json", numbers)


def outside_of_code(text: str) -> str:
    """Return Markdown without its fenced blocks and inline code, as CommonMark finds them."""
    text = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", "", text, flags=re.DOTALL)


def test_names_break_out_of_neither_code_nor_front_matter(tmp_path: Path) -> None:
    hostile = "te``ach`er <script>alert(1)<img src=x>"
    folder = finish(write_folder(tmp_path / "run", config_of(teacher={"model": f"/models/{hostile}"})))
    title = "plain\n---\nlicense: mit\n---\n<img src=x>"
    card = card_of(folder, exported=replace(EXPORTED, title=title))
    assert hostile in card
    assert "license" not in ModelCard(card).data.to_dict()
    summarise(folder, "round 2")
    write_result(folder)
    named = ModelCard(card_of(folder, exported=replace(EXPORTED, title=title))).data
    assert named.license is None
    assert named.model_name == title
    assert "<" not in outside_of_code(card)
    assert card.count("\n---\n") == 1


@pytest.mark.parametrize("text", ["plain", "`", "``a`b", "a\nb", "``` `` `"])
def test_inline_code_holds_any_text_on_one_line(text: str) -> None:
    found = re.fullmatch(r"(`+) ?(.*?) ?\1", inline_code(text))
    assert found is not None
    assert found[2] == " ".join(text.split())
    assert found[1] not in found[2]


def test_settings_with_backticks_stay_in_their_block(tmp_path: Path) -> None:
    sampling = {"sampling": {"stop": ["a\n```\n# No heading\n"]}}
    card = card_of(finish(write_folder(tmp_path / "run", config_of(generate=sampling))))
    assert "# No heading" in card
    assert "# No heading" not in outside_of_code(card)


def test_a_control_has_settings_and_stages_of_its_own(plain: Path) -> None:
    card = card_of(plain, "pound_round round 2")
    rows = re.findall(r"^\| ([\w -]+?) +\| \w+ +\| 2 +\| 20 +\| (\d+) +\| ([\d.]+) ", card, re.MULTILINE)
    assert rows == [
        ("warm-up", "32", "0.001"),
        ("pound_round round 1", "7", "0.5"),
        ("pound_round round 2", "7", "0.5"),
    ]
    settings = parse_yaml(re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1], where="card")
    assert list(settings) == ["warmup", "pound_round", "sampling"]
    assert settings["pound_round"]["objective"]["kind"] == "kd"
    assert ModelCard(card).data.tags == ["distillation", "vlm-distill", "kd"]


def test_responses_are_those_that_the_student_was_trained_on(plain: Path) -> None:
    for name in ("teacher", "student_round_1", "student_round_2"):
        counts = Counts(prompts=3, overlong=0, stop=2, length=0, empty=0, aborted=0)
        write_state(plain / "responses" / name / "counts.json", counts)

    def responses(stage: str) -> list[str]:
        return re.findall(
            r"^\| ([\w ]+?) +\| 0 +\| 0 +\| 0 +\| 0 +\| 3 +\| 2 ", card_of(plain, stage), re.MULTILINE
        )

    assert responses("round 2") == ["teacher", "student round 1", "student round 2"]
    assert responses("round 1") == ["teacher", "student round 1"]
    assert responses("warm_up") == ["teacher"]


def test_sources_of_packages_that_are_not_here_are_named(plain: Path) -> None:
    recipe = {"name": "sums", "sources": [{"source": {"kind": "not_installed"}}]}
    sources = [{"text": "all sums", "hub_id": None}, {"text": "half of a/b", "hub_id": "a/b"}]
    manifest = Manifest(
        key="k", recipe=recipe, sources=tuple(sources), counts={"train": 4}, files={}, fingerprint="f"
    )
    write_state(plain / "data" / "manifest.json", manifest)
    card = card_of(plain)
    assert "Recipe `sums`: all sums, half of a/b." in card
    assert ModelCard(card).data.datasets == ["a/b"]


def test_scores_are_the_metadata_of_the_hub(plain: Path) -> None:
    summarise(plain, "round 2")
    write_result(plain)
    (found,) = ModelCard(card_of(plain)).data.eval_results
    assert (found.task_type, found.dataset_name, found.metric_type) == ("image-text-to-text", "vqa", "exact")
    assert found.metric_value == 51.24
    assert not found.verified, "the hub verifies, not this program"


def test_scores_of_weights_that_were_rounded_afterwards_are_no_metadata(plain: Path) -> None:
    summarise(plain, "round 2")
    write_result(plain)
    card = card_of(plain, exported=replace(EXPORTED, converted=True, dtype="bfloat16"))
    assert ModelCard(card).data.eval_results is None
    assert "measured before the weights were rounded to bfloat16" in card
    assert re.search(r"^\| vqa exact +\| 50.0 \[25.0, 75.0\] +\| - +\| 1,234 ", card, re.MULTILINE)


def test_a_measure_more_is_a_column_of_the_page_and_a_row_of_the_card(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = Measure(
        column="ECE",
        words="calibration error",
        meaning="expected calibration error",
        unit="per cent",
        format=lambda value: f"{value:.3f}!",
        better="lower",
    )
    monkeypatch.setitem(MEASURES, "calibration", new)
    summarise(plain, "round 2", calibration=0.5)
    assert re.search(r"^\| ECE +\| 0.500! +\| 0.000! ", card_of(plain), re.MULTILINE)
    page = write_report(plain).read_text()
    assert ">calibration error</th>" in page
    assert ">0.500!</td>" in page


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (("round 1", "round_1"), "round 1"),
        (("warm-up", "warmup"), "warm-up"),
        (("warm_up",), "warm_up"),
        (("pound_round round 2", "pound_round_round_2"), "pound_round round 2"),
        ((None,), "round 2"),
    ],
)
def test_a_stage_is_named_as_in_tables_or_as_on_disk(
    plain: Path, names: tuple[str | None, ...], label: str
) -> None:
    for name in names:
        assert choose_training(open_run(plain), name).label == label


def test_without_rounds_the_warm_up_is_exported(tmp_path: Path) -> None:
    config = config_of(rounds=0, objective=None, train=None, controls=())
    folder = write_folder(tmp_path / "run", config)
    with pytest.raises(ConfigError, match="'warmup' is not trained; finish the run"):
        choose_training(open_run(folder), None)
    assert choose_training(open_run(finish(folder)), None).label == "warm-up"


@pytest.mark.parametrize(
    "text",
    [
        "license: mit\nbase_model: &base some/start\ndatasets: [*base]\nlanguage: no",
        "license: x\nlicense: mit\nbase_model: some/start\ndatasets: [some/start]\nlanguage: 'no'\nmetrics:",
        "base_model: some/start\ntags: [1.5]\ndatasets:\n- some/start\nlicense: mit\nlanguage: no",
    ],
)
@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_cards_by_others_are_read_in_any_yaml(tmp_path: Path, text: str, line_break: str) -> None:
    content = f"---\n{text}\n---\n# Title\n---\nlicense: no\n---\n".replace("\n", line_break)
    (tmp_path / CARD).write_bytes(b"\xef\xbb\xbf" * (line_break == "\r\n") + content.encode())
    expected = {"license": "mit", "base_model": "some/start", "datasets": ["some/start"], "language": "no"}
    assert card_settings(tmp_path, KEYS) == expected
    card = model_card(replace(EXPORTED, settings=card_settings(tmp_path, KEYS)), None)
    assert ModelCard(card).data.language == "no", "Norwegian"


@pytest.mark.parametrize(
    "content",
    [b"# No front matter", b"---\n[1, 2]\n---\n", b"---\na: [\n---\n", b"---\nlicense:\n---\n", b"\xff"],
)
def test_cards_that_say_nothing_are_no_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CARD).write_bytes(content)
    assert card_settings(tmp_path, KEYS) == {}
