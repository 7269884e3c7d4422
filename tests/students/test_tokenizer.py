import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tests.tiny import TEXTS
from vlm_distill.config import decode
from vlm_distill.errors import AdapterError, ConfigError
from vlm_distill.students.tokenizer import IMAGE, BpeSettings, num_ids, train_tokenizer, with_image_token

CHAT = [
    {"role": "system", "content": [{"type": "text", "text": "Brief."}]},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]},
]
# The template of a text model: content is a string, and a list is a TypeError.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def trained(size: int = 300) -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, settings=BpeSettings(vocab_size=size))


def test_equal_texts_give_equal_ids():
    assert trained().get_vocab() == trained().get_vocab()
    assert trained(290).get_vocab() != trained().get_vocab()


def test_any_text_survives_a_round_trip():
    tokenizer = trained()
    for text in (*TEXTS, "Ünïcode 漢字 🙂\n\ttabs  and  spaces"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_markers_are_single_tokens_and_a_turn_costs_two():
    tokenizer = trained()
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=True)["input_ids"]
    text = "<|system|>Brief.<|end|><|user|><image>Hi<|end|><|assistant|>"
    assert tokenizer.decode(ids) == text
    num_words = len(tokenizer("Brief.")["input_ids"]) + len(tokenizer("Hi")["input_ids"])
    assert len(ids) == num_words + 2 + 2 + 1 + 1


def test_the_end_of_a_turn_is_the_stop_token():
    tokenizer = trained()
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


def test_a_vocabulary_below_the_bytes_is_refused():
    with pytest.raises(ConfigError, match="vocab_size"):
        decode(BpeSettings, {"vocab_size": 100}, where="run.yaml")


def test_a_text_template_gets_the_image_token_where_the_part_stands_and_keeps_its_own_turns():
    tokenizer = trained()
    tokenizer.chat_template = CHATML
    adapted = with_image_token(tokenizer)
    assert adapted.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False) == (
        "<|im_start|>system\nBrief.<|im_end|>\n<|im_start|>user\n<image>Hi<|im_end|>\n<|im_start|>assistant\n"
    )
    plain = [{"role": "user", "content": "Hi"}]
    assert adapted.apply_chat_template(plain, tokenize=False) == tokenizer.apply_chat_template(
        plain, tokenize=False
    )


def test_a_template_that_places_images_is_kept():
    tokenizer = trained()
    assert with_image_token(tokenizer).chat_template == tokenizer.chat_template


def test_an_image_token_is_added_behind_all_known_ids_and_the_original_is_untouched():
    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?")),
        unk_token="?",
        chat_template=CHATML,
    )
    adapted = with_image_token(plain)
    assert adapted.convert_tokens_to_ids(IMAGE) == 3
    assert IMAGE in adapted.all_special_tokens
    assert len(plain) == 3


def test_of_several_templates_that_of_plain_conversations_places_the_images():
    named, single = trained(), trained()
    named.chat_template, single.chat_template = {"tool_use": "tools", "default": CHATML}, CHATML
    assert with_image_token(named).chat_template == with_image_token(single).chat_template
    assert with_image_token(trained(), chat_template=named.chat_template).chat_template == (
        with_image_token(single).chat_template
    )
    named.chat_template = {"tool_use": "tools", "rag": CHATML}
    with pytest.raises(AdapterError, match=r"expected .* named 'default', found rag, tool_use; add"):
        with_image_token(named)


def test_ids_with_gaps_need_rows_up_to_the_last():
    words = models.WordLevel({"a": 0, "b": 7, "?": 2}, unk_token="?")
    assert num_ids(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))) == 8
    assert num_ids(trained()) == len(trained())


def test_a_tokenizer_without_a_template_is_refused():
    tokenizer = trained()
    tokenizer.chat_template = None
    with pytest.raises(AdapterError, match="no chat template"):
        with_image_token(tokenizer)
