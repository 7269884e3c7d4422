import copy
from dataclasses import replace

import pytest
import torch

from tests.permuted import permuted, random_places
from tests.stages import response
from tests.tiny import tiny_llava, tiny_text_model, with_width
from tests.tiny_qwen import tiny_qwen
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.alignment.pair import align, pair_report, share_stops
from vlm_distill.batches import pad_responses
from vlm_distill.errors import AdapterError, DataError
from vlm_distill.students.tokenizer import BpeSettings, train_tokenizer

BUILDS = {"text": tiny_text_model, "llava": tiny_llava, "qwen2_vl": lambda: tiny_qwen("qwen2_vl")}


def with_token(loaded: LoadedModel, token: str, *, is_special: bool) -> LoadedModel:
    """Return a model with one more token and as many rows."""
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.add_tokens([token], special_tokens=is_special)
    wide = with_width(loaded, len(tokenizer))
    return replace(wide, processor=tokenizer, tokenizer=tokenizer)


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_tokens_are_matched_by_identity_and_both_placeholders_are_suppressed_on_either_side(build) -> None:
    teacher = build()
    places = random_places(teacher)
    found = align(teacher, permuted(teacher, places))
    num_tokens = len(teacher.tokenizer)
    assert (
        found.route == f"the same tokens under other ids: ids are mapped; losses compare {num_tokens} tokens"
    )
    assert torch.equal(places[found.teacher.ids], found.student.ids)
    assert len(found.student.ids) == num_tokens
    assert found.teacher_suppressed == teacher.image_token_ids
    assert found.student_suppressed == tuple(int(places[one]) for one in teacher.image_token_ids)


@pytest.mark.parametrize(("teacher_width", "student_width"), [(320, 304), (304, 320)])
def test_padding_of_either_layer_is_suppressed_where_it_is(teacher_width: int, student_width: int) -> None:
    teacher, student = (with_width(tiny_text_model(), width) for width in (teacher_width, student_width))
    places = torch.cat([random_places(tiny_text_model()), torch.arange(300, student_width)])
    found = align(teacher, permuted(student, places))
    assert found.teacher_suppressed == tuple(range(300, teacher_width))
    assert found.student_suppressed == tuple(range(300, student_width))


def test_responses_go_to_the_student_and_back_to_the_teacher_as_they_were() -> None:
    teacher = tiny_text_model()
    places = random_places(teacher)
    found = align(teacher, permuted(teacher, places))
    ids, pad = (10, 7, 42), teacher.tokenizer.pad_token_id
    by_teacher, by_student = found.for_student([response("a", "teacher", ids), response("a", "student", ids)])
    assert by_teacher.token_ids == tuple(int(places[one]) for one in ids)
    assert by_student.token_ids == ids
    padded = pad_responses([[by_teacher, response("a", "student", (int(places[9]),))]])
    read = found.for_teacher(padded)
    assert read.input_ids.tolist() == [[10, 7, 42], [9, pad, pad]]
    assert torch.equal(read.mask, padded.mask)


def test_a_student_stops_where_its_teacher_stops_at_its_own_ids() -> None:
    plain = tiny_text_model()
    places, teacher = random_places(plain), replace(plain, stop_ids=(1, 40))
    student = permuted(plain, places)
    report = pair_report(teacher, student)
    assert report.added_stops == (int(places[40]),)
    assert share_stops(student, teacher, report.alignment).stop_ids == (int(places[1]), int(places[40]))


def test_a_token_of_one_side_is_outside_where_it_is_an_added_one_and_refused_where_it_is_text() -> None:
    plain = tiny_text_model()
    student = permuted(plain, random_places(plain))
    found = align(plain, with_token(student, "<think>", is_special=False))
    assert (found.only_student, found.student_suppressed) == (("<think>",), (300,))
    found.require_readable([response("a", "reference", (10,))])
    with pytest.raises(DataError, match="token id 300, a token that the teacher lacks"):
        found.require_readable([response("a", "reference", (10, 300))])
    back = align(with_token(plain, "<think>", is_special=True), student)
    with pytest.raises(DataError, match="'a': its response by the teacher holds token id 300"):
        back.for_student([response("a", "teacher", (300,))])


def test_other_token_sets_are_refused_with_their_numbers_on_each_side_and_what_to_do() -> None:
    plain = tiny_text_model()
    other = train_tokenizer(["zebra quagga okapi " * 3], settings=BpeSettings(vocab_size=280))
    with pytest.raises(
        AdapterError,
        match=r"token sets do not match: \d+ of 300 tokens only the teacher has \(first: .*, \d+ of 278 "
        r"tokens only the student has \(first: .*there is no route between different token sets yet",
    ) as caught:
        align(plain, replace(plain, processor=other, tokenizer=other))
    for remedy in ("student.build.tokenizer: teacher", "objective sft"):
        assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_token_that_responses_need_must_lie_inside_both_output_layers() -> None:
    plain = tiny_text_model()
    with pytest.raises(AdapterError, match=r"responses need 10 more tokens than those that both have inside"):
        align(plain, with_width(plain, 290))


def test_a_stop_token_that_only_one_side_has_is_refused() -> None:
    more = with_token(tiny_text_model(), "<stop>", is_special=True)
    with pytest.raises(AdapterError, match=r"responses need 1 more .*<stop>"):
        align(replace(more, stop_ids=(300,)), tiny_text_model())


def test_a_stop_token_at_another_id_is_mapped() -> None:
    plain = tiny_text_model()
    places = torch.arange(300)
    places[[1, 2]] = torch.tensor([2, 1])
    moved = align(plain, permuted(plain, places))
    assert moved.permutation is not None
    assert moved.stops(plain.stop_ids) == (2,)
