import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tiny import LANGUAGE, VISION, fresh, tiny_llava, tiny_text_model
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.alignment.pair import count_parameters, pair_report, share_stops, side_of
from vlm_distill.errors import AdapterError
from vlm_distill.models.load import load_model
from vlm_distill.models.save import save_model
from vlm_distill.models.skeleton import load_side
from vlm_distill.students.build import BuildConfig, build_llava
from vlm_distill.students.tokenizer import BpeSettings, train_tokenizer


def student_of(teacher: LoadedModel, **settings: object) -> LoadedModel:
    config = BuildConfig.model_validate(
        {"vision": VISION, "language": LANGUAGE, "vision_feature_layer": -1, **settings}
    )
    return build_llava(config, teacher=teacher, texts=(), seed=1)


def with_tokens(loaded: LoadedModel, tokens: list[str]) -> LoadedModel:
    """Return a side whose tokenizer has more added tokens; its weights do not matter here."""
    processor = copy.deepcopy(loaded.processor)
    tokenizer = getattr(processor, "tokenizer", processor)
    tokenizer.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
    return replace(loaded, processor=processor, tokenizer=tokenizer)


def with_width(loaded: LoadedModel, width: int) -> LoadedModel:
    model = copy.deepcopy(loaded.model)
    model.resize_token_embeddings(width, mean_resizing=False)
    return replace(loaded, model=model)


def test_a_student_with_the_tokenizer_of_its_teacher_shares_every_id():
    teacher = tiny_llava()
    report = pair_report(teacher, student_of(teacher))
    assert report.route == "identical tokenizers: ids are shared"
    assert report.vocabulary == slice(0, len(teacher.tokenizer))
    assert (report.only_teacher, report.only_student, report.num_beyond) == ((), (), 0)
    assert report.added_stops == ()


def test_image_tokens_of_the_probe_are_counted_on_both_sides():
    teacher = tiny_llava()
    student = student_of(teacher, vision={**VISION, "patch_size": 4}, vision_feature_select_strategy="full")
    report = pair_report(teacher, student)
    assert (report.teacher.num_image_tokens, report.student.num_image_tokens) == (4, 17)


def test_a_text_teacher_and_an_image_text_student_share_all_ids_of_the_teacher():
    report = pair_report(tiny_text_model(), student_of(tiny_text_model()))
    assert report.vocabulary == slice(0, len(tiny_text_model().tokenizer))
    assert report.teacher.num_image_tokens == 0
    assert report.student.num_image_tokens == 4


@pytest.mark.parametrize("widths", [(320, 304), (304, 320)])
def test_padded_output_layers_are_restricted_to_the_ids_of_both_tokenizers(widths):
    teacher, student = (with_width(tiny_text_model(), width) for width in widths)
    report = pair_report(teacher, student)
    assert (report.teacher.vocabulary_width, report.student.vocabulary_width) == widths
    assert report.vocabulary == slice(0, 300)


def test_added_tokens_of_one_side_stay_outside_and_are_named():
    plain = tiny_text_model()
    report = pair_report(
        with_width(with_tokens(plain, ["<a>", "<b>"]), 304),
        with_width(with_tokens(plain, ["<c>", "<b>"]), 304),
    )
    assert report.vocabulary == slice(0, 300)
    assert (report.only_teacher, report.only_student) == (("<a>",), ("<c>",))
    assert report.num_beyond == 1
    assert "<a>" in "\n".join(report.lines())


def test_other_token_sets_are_refused_with_their_number_and_first_tokens():
    plain = tiny_text_model()
    other = train_tokenizer(["zebra quagga okapi " * 3], settings=BpeSettings(vocab_size=280))
    with pytest.raises(
        AdapterError, match=r"token sets do not match: \d+ of \d+ tokens differ \(first: \['"
    ) as caught:
        pair_report(plain, replace(plain, processor=other, tokenizer=other))
    assert "student.build.tokenizer: teacher" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_token_that_responses_need_must_lie_inside_both_output_layers():
    plain = tiny_text_model()
    with pytest.raises(
        AdapterError, match=r"only ids below 290 mean the same token .* responses need 10 more"
    ):
        pair_report(plain, with_width(plain, 290))


def test_a_stop_token_that_only_one_side_has_is_refused():
    more = with_width(with_tokens(tiny_text_model(), ["<stop>"]), 301)
    with pytest.raises(AdapterError, match=r"responses need 1 more .*<stop>"):
        pair_report(replace(more, stop_ids=(300,)), tiny_text_model())


def test_another_stop_id_of_the_teacher_stops_the_student_too_also_after_saving(tmp_path: Path):
    plain = tiny_text_model()
    teacher = replace(plain, stop_ids=(0, 1))
    report = pair_report(teacher, plain)
    assert report.added_stops == (0,)
    assert any("will stop too: [0]" in line for line in report.lines())
    student = fresh(plain)
    assert share_stops(student, plain) is student
    save_model(share_stops(student, teacher), tmp_path / "saved")
    assert set(load_model(str(tmp_path / "saved")).stop_ids) == {0, 1}


def test_ids_that_one_model_could_not_read_and_placeholders_are_not_shared():
    llava = tiny_llava()
    report = pair_report(llava, llava)
    assert set(llava.image_token_ids) <= set(report.suppressed_ids)
    assert all(
        token_id >= report.vocabulary.stop
        for token_id in set(report.suppressed_ids) - set(llava.image_token_ids)
    )


@pytest.mark.parametrize("build", [tiny_text_model, tiny_llava])
def test_a_side_read_from_disk_without_weights_equals_the_loaded_one(build, tmp_path: Path):
    loaded = build()
    save_model(loaded, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    side = load_side(str(tmp_path / "model"))
    assert side.adapter is loaded.adapter
    assert side.stop_ids == loaded.stop_ids
    found, expected = pair_report(side, side), pair_report(loaded, loaded)
    assert replace(found.teacher, name="x") == replace(expected.teacher, name="x")
    assert found.vocabulary == expected.vocabulary


@pytest.mark.parametrize("build", [tiny_text_model, tiny_llava])
def test_parameters_are_counted_without_weights(build):
    loaded = build()
    assert count_parameters(side_of(loaded)) == sum(p.numel() for p in loaded.model.parameters())


def test_the_report_reads_as_lines_with_both_names():
    teacher = tiny_llava()
    lines = pair_report(teacher, replace(student_of(teacher), path="student")).lines()
    assert lines[0] == "route: identical tokenizers: ids are shared; losses compare ids 0 to 299"
    assert lines[1].startswith(f"teacher: {teacher.path}, 0.0")
    assert "4 tokens per probe image, stops at <|end|> (1)" in lines[2]


def test_without_a_generation_config_the_stop_ids_are_those_of_the_config(tmp_path: Path):
    save_model(tiny_text_model(), tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").unlink()
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "eos_token_id": [1, 4]}))
    name = str(tmp_path / "model")
    assert load_side(name).stop_ids == load_model(name).stop_ids == (1, 4)
