import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.tiny import LANGUAGE, VISION, fresh, tiny_llava, tiny_text_model
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.alignment.alignment import Alignment
from vlm_distill.alignment.pair import count_parameters, pair_report, share_stops
from vlm_distill.losses import IdRange
from vlm_distill.models.load import load_model
from vlm_distill.models.save import save_model
from vlm_distill.models.skeleton import load_skeleton
from vlm_distill.students.build import BuildConfig, build_llava


def student_of(teacher: LoadedModel, **settings: object) -> LoadedModel:
    config = BuildConfig.model_validate(
        {"vision": VISION, "language": LANGUAGE, "vision_feature_layer": -1, **settings}
    )
    return build_llava(config, teacher=teacher, texts=(), seed=1)


def test_image_tokens_of_the_probe_are_counted_on_both_sides():
    teacher = tiny_llava()
    student = student_of(teacher, vision={**VISION, "patch_size": 4}, vision_feature_select_strategy="full")
    report = pair_report(teacher, student)
    assert (report.teacher.num_image_tokens, report.student.num_image_tokens) == (4, 17)


def test_a_text_teacher_and_an_image_text_student_share_all_ids_of_the_teacher():
    report = pair_report(tiny_text_model(), student_of(tiny_text_model()))
    assert report.alignment.student == IdRange(stop=len(tiny_text_model().tokenizer))
    assert report.teacher.num_image_tokens == 0
    assert report.student.num_image_tokens == 4


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


@pytest.mark.parametrize("build", [tiny_text_model, tiny_llava])
def test_a_skeleton_read_from_disk_without_weights_fits_like_the_loaded_model(build, tmp_path: Path):
    loaded = build()
    save_model(loaded, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    skeleton = load_skeleton(str(tmp_path / "model"))
    assert skeleton.adapter is loaded.adapter
    assert (skeleton.stop_ids, skeleton.image_token_ids) == (loaded.stop_ids, loaded.image_token_ids)
    found, expected = pair_report(skeleton, skeleton), pair_report(loaded, loaded)
    assert replace(found.teacher, name="x") == replace(expected.teacher, name="x")
    assert found.alignment == expected.alignment


def test_parameters_are_counted_as_they_were_before_quantisation():
    loaded = tiny_llava()
    expected = count_parameters(loaded)
    packed = copy.deepcopy(loaded.model)
    # As the libraries do it: bits of several weights in one number.
    for module in packed.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(module.weight[: len(module.weight) // 2])
    packed.hf_quantizer = "some"
    assert sum(parameter.numel() for parameter in packed.parameters()) < expected
    assert count_parameters(replace(loaded, model=packed)) == expected


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
    assert load_skeleton(name).stop_ids == load_model(name).stop_ids == (1, 4)


def test_added_tokens_that_are_not_compared_are_named_and_counted():
    plain = tiny_text_model()
    ids = IdRange(stop=300)
    alignment = Alignment(
        route="some", student=ids, teacher=ids, only_teacher=("<a>",), only_student=("<c>",), num_beyond=1
    )
    lines = replace(pair_report(plain, plain), alignment=alignment).lines()
    assert lines[0] == "route: some"
    assert lines[3:] == [
        "added tokens that only the teacher has, outside the loss: <a>",
        "added tokens that only the student has, outside the loss: <c>",
        "shared added tokens behind the compared ids, outside the loss: 1",
    ]


def test_a_student_without_a_teacher_is_saved_with_the_token_that_ends_its_labels(tmp_path: Path):
    student = fresh(tiny_text_model())
    student.model.generation_config.eos_token_id = 7
    learning = replace(student, stop_ids=(1, 7))
    assert share_stops(learning, None).stop_ids == (1, 7)
    assert learning.model.generation_config.eos_token_id == [1, 7]
    before = learning.model.generation_config
    assert share_stops(learning, None).model.generation_config is before
