import copy
from typing import Any

import pytest

from tests.tiny import tiny_llava, tiny_text_model
from vlm_distill.adapters.chat import find_stop_ids
from vlm_distill.adapters.turns import end_of_turn
from vlm_distill.errors import AdapterError

LLAMA = (
    "{% for m in messages %}<|start|>{{ m['role'] }}<|eoh|>\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|eoh|>\n\n{% endif %}"
)
# Behind an answer stands the end of the turn, and behind the conversation an end of the text.
PHI = LLAMA + "{% if not add_generation_prompt %}<|eos|>{% endif %}"
CHATML = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|eot|>\n{% endfor %}"
VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] }} "
    "{% else %}ASSISTANT: {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
PLAIN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
PARTS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'][0]['text'] }}<|eot|>{% endfor %}"
WITHOUT_ANSWERS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ raise_exception('none') }}{% endif %}"
    "{{ m['content'] }}<|eot|>{% endfor %}"
)

BEFORE_THE_NEXT = (
    "{% for m in messages %}{% if not loop.first %}<|eot|>{% endif %}{{ m['content'] }}{% endfor %}"
)
BEFORE_A_PROMPT = (
    "{% for m in messages %}{{ m['content'] }}"
    "{% if not loop.last or add_generation_prompt %}<|eot|>{% endif %}{% endfor %}"
)
WITH_A_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('none') }}{% endif %}" + CHATML


def tokenizer_with(template: object) -> Any:
    tokenizer = copy.deepcopy(tiny_text_model().tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<|eos|>"})
    # One that is no special token to the tokenizer ends turns of some models too.
    tokenizer.add_tokens(["<|eot|>", "<|eot|>more"])
    tokenizer.chat_template = template
    return tokenizer


class Listing:
    """A generation config with several stop ids, the template's last."""

    def __init__(self, *ids: int) -> None:
        self.eos_token_id = list(ids)


@pytest.mark.parametrize("template", [LLAMA, PHI, CHATML, {"default": LLAMA, "tool_use": PLAIN}])
def test_the_token_behind_the_answer_ends_a_turn_whatever_the_eos_token_is(template: object):
    tokenizer = tokenizer_with(template)
    end = tokenizer.convert_tokens_to_ids("<|eot|>")
    assert end_of_turn(tokenizer, stop_ids=()) == end
    assert find_stop_ids(Listing(7, tokenizer.eos_token_id, end), tokenizer) == (
        end,
        tokenizer.eos_token_id,
        7,
    )
    assert find_stop_ids(None, tokenizer) == (end, tokenizer.eos_token_id)


def test_an_eos_token_that_the_template_writes_ends_a_turn():
    tokenizer = tokenizer_with(VICUNA)
    assert end_of_turn(tokenizer, stop_ids=()) == tokenizer.eos_token_id


@pytest.mark.parametrize("template", [BEFORE_THE_NEXT, BEFORE_A_PROMPT])
def test_an_end_that_stands_only_before_another_turn_is_found_among_the_stop_ids(template: str):
    tokenizer = tokenizer_with(template)
    end = tokenizer.convert_tokens_to_ids("<|eot|>")
    assert find_stop_ids(Listing(tokenizer.eos_token_id, end), tokenizer) == (end, tokenizer.eos_token_id)
    # It may as well begin a turn.
    assert find_stop_ids(None, tokenizer) == (tokenizer.eos_token_id,)


def test_a_template_that_wants_a_system_message_shows_its_end():
    tokenizer = tokenizer_with(WITH_A_SYSTEM)
    assert end_of_turn(tokenizer, stop_ids=()) == tokenizer.convert_tokens_to_ids("<|eot|>")


@pytest.mark.parametrize(
    "template", [PLAIN, WITHOUT_ANSWERS, "no turns", None, "{{ 1 / 0 }}", {"other": LLAMA}]
)
def test_a_template_that_shows_no_end_leaves_it_to_the_eos_token(template: object):
    tokenizer = tokenizer_with(template)
    assert end_of_turn(tokenizer, stop_ids=()) is None
    assert find_stop_ids(Listing(7), tokenizer) == (tokenizer.eos_token_id, 7)


def test_a_processor_is_asked_with_the_parts_that_its_template_expects():
    processor = copy.deepcopy(tiny_llava().processor)
    assert end_of_turn(processor, stop_ids=()) == tiny_llava().stop_ids[0]
    processor.tokenizer = tokenizer_with(PLAIN)
    processor.chat_template = PARTS
    assert end_of_turn(processor, stop_ids=()) == processor.tokenizer.convert_tokens_to_ids("<|eot|>")


def test_a_model_without_any_end_is_refused_in_one_line_and_negative_ids_are_none():
    tokenizer = tokenizer_with(PLAIN)
    tokenizer.eos_token = None
    assert find_stop_ids(Listing(-1, 7), tokenizer) == (7,)
    with pytest.raises(AdapterError, match="no token that ends an answer"):
        find_stop_ids(Listing(-1), tokenizer)
