from typing import Any

import pytest

from tests.evaluation.golden_values import golden_values
from vlm_distill.evaluation.scorers import VqaAccuracy
from vlm_distill.evaluation.scorers.vqa_text import normalise_m4c, normalise_vqa

PROFILES = {
    "vqa_v2_official": "official",
    "vqa_v2_lmms": "lmms",
    "textvqa_m4c": "llava",
    "textvqa_lmms": "llava",
}


@pytest.mark.parametrize("golden", golden_values(*PROFILES))
def test_accuracy_equals_the_official_scorer(golden: dict[str, Any]) -> None:
    scorer = VqaAccuracy(profile=PROFILES[golden["metric"]])
    value = scorer(golden["inputs"]["prediction"], tuple(golden["inputs"]["answers"]))
    assert value == pytest.approx(golden["expected"], abs=1e-9)


@pytest.mark.parametrize("golden", golden_values("vqa_v2_normalize"))
def test_vqa_normalisation_equals_the_official_one(golden: dict[str, Any]) -> None:
    assert normalise_vqa(golden["inputs"]["text"]) == golden["expected"]


@pytest.mark.parametrize("golden", golden_values("evalai_processor"))
def test_m4c_normalisation_equals_the_official_one(golden: dict[str, Any]) -> None:
    assert normalise_m4c(golden["inputs"]["text"]) == golden["expected"]


@pytest.mark.parametrize(
    ("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
@pytest.mark.parametrize("profile", ["official", "lmms", "llava"])
def test_every_profile_leaves_one_annotator_out(profile: str, matches: int, expected: float) -> None:
    answers = ("dog",) * matches + ("cat",) * (10 - matches)
    assert VqaAccuracy(profile=profile)("dog", answers) == pytest.approx(expected, abs=1e-12)


def test_official_normalises_only_where_the_answers_differ() -> None:
    assert VqaAccuracy(profile="official")("Yes.", ("yes",) * 10) == 0.0
    assert VqaAccuracy(profile="official")("Yes.", ("yes",) * 9 + ("no",)) == 1.0
    assert VqaAccuracy(profile="lmms")("Yes.", ("yes",) * 10) == 1.0


def test_profiles_differ_on_several_commas_between_digits() -> None:
    answers = ("1000",) * 9 + ("1",)
    assert VqaAccuracy(profile="official")("1,,000", answers) == 0.0
    assert VqaAccuracy(profile="lmms")("1,,000", answers) == 1.0


def test_at_most_32_periods_are_removed() -> None:
    assert normalise_vqa("x" + "." * 40) == "x" + "." * 8


def test_a_single_reference_counts_as_often_as_the_config_says():
    scorer = VqaAccuracy(single_reference_votes=10)
    assert scorer("red", ("red",)) == 1.0
    assert scorer("blue", ("red",)) == 0.0
    assert scorer.min_references == 1
    assert VqaAccuracy()("red", ("red",)) == 0.0
    assert VqaAccuracy().min_references == VqaAccuracy(single_reference_votes=3).min_references == 4
    many = ("red",) * 2 + ("blue",) * 8
    assert scorer("red", many) == VqaAccuracy()("red", many)
