import copy
from dataclasses import replace

import pytest

from tests.tiny import tiny_llava, tiny_text_model, with_width
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.alignment.same_ids import same_ids
from vlm_distill.losses import IdRange
from vlm_distill.students.tokenizer import BpeSettings, train_tokenizer


def with_tokens(loaded: LoadedModel, tokens: list[str]) -> LoadedModel:
    """Return a side whose tokenizer has more added tokens; its weights do not matter here."""
    processor = copy.deepcopy(loaded.processor)
    tokenizer = getattr(processor, "tokenizer", processor)
    tokenizer.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
    return replace(loaded, processor=processor, tokenizer=tokenizer)


def test_models_with_one_tokenizer_share_every_id():
    teacher = tiny_llava(1, hidden_size=32)
    found = same_ids(teacher, tiny_llava())
    assert found.route == "identical tokenizers: ids are shared; losses compare ids 0 to 299"
    assert found.student == found.teacher == IdRange(stop=len(teacher.tokenizer))
    assert (found.only_teacher, found.only_student, found.num_beyond) == ((), (), 0)


@pytest.mark.parametrize("widths", [(320, 304), (304, 320)])
def test_padded_output_layers_are_restricted_to_the_ids_of_both_tokenizers(widths):
    teacher, student = (with_width(tiny_text_model(), width) for width in widths)
    found = same_ids(teacher, student)
    assert found.student == found.teacher == IdRange(stop=300)
    assert found.student_suppressed == tuple(range(300, 320))


def test_added_tokens_of_one_side_stay_outside_and_are_named():
    plain = tiny_text_model()
    found = same_ids(
        with_width(with_tokens(plain, ["<a>", "<b>"]), 304),
        with_width(with_tokens(plain, ["<c>", "<b>"]), 304),
    )
    assert found.student == IdRange(stop=300)
    assert (found.only_teacher, found.only_student) == (("<a>",), ("<c>",))
    assert found.num_beyond == 1


def test_where_a_response_may_need_a_token_of_one_side_there_is_no_range():
    plain = tiny_text_model()
    other = train_tokenizer(["zebra quagga okapi " * 3], settings=BpeSettings(vocab_size=280))
    assert same_ids(plain, replace(plain, processor=other, tokenizer=other)) is None
    assert same_ids(plain, with_width(plain, 290)) is None
    more = with_width(with_tokens(plain, ["<stop>"]), 301)
    assert same_ids(replace(more, stop_ids=(300,)), plain) is None


def test_ids_that_one_model_could_not_read_and_placeholders_must_not_be_generated():
    llava = tiny_llava()
    assert same_ids(llava, llava).student_suppressed == tuple(sorted(llava.image_token_ids))
    wide = same_ids(llava, with_width(tiny_text_model(), 302)).student_suppressed
    assert wide == (*sorted(llava.image_token_ids), 300, 301)
