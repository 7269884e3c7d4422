import copy
from dataclasses import replace

import pytest
import torch
from transformers import (
    Blip2Processor,
    BlipImageProcessor,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    GPTJConfig,
    GPTJForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    HyperCLOVAXConfig,
    HyperCLOVAXForCausalLM,
)

from tests.tiny import example, picture, tiny_llava, tiny_text_model
from vlm_distill.adapters.body import hidden_states
from vlm_distill.adapters.catalog import find_adapter
from vlm_distill.adapters.chat import encode_image_text, find_stop_ids
from vlm_distill.adapters.head import output_head
from vlm_distill.adapters.positions import sequential_positions
from vlm_distill.batches import PromptBatch
from vlm_distill.errors import AdapterError
from vlm_distill.records import Message, Text

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL_GPTJ = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4, "n_positions": 32}


def texts_of(loaded, batch: PromptBatch) -> list[str]:
    rows = zip(batch.input_ids, batch.attention_mask.bool(), strict=True)
    return [loaded.tokenizer.decode(ids[mask]) for ids, mask in rows]


def test_prompts_keep_their_turns_and_end_where_the_assistant_begins():
    loaded = tiny_text_model()
    turns = example("a", "What color?", system="Be brief.").messages
    several = replace(
        example("a", "x"),
        messages=(
            *turns,
            Message(role="assistant", content=(Text(text="red"),)),
            Message(role="user", content=(Text(text="Really"), Text(text="?"))),
        ),
    )
    [text] = texts_of(loaded, loaded.encode([several], [[]]))
    assert text == (
        "<|system|>Be brief.<|end|><|user|>What color?<|end|><|assistant|>red<|end|>"
        "<|user|>Really?<|end|><|assistant|>"
    )


def test_every_image_is_counted_at_its_prompt_and_kept_in_order():
    loaded = tiny_llava()
    colors = ["red", "blue", "green"]
    batch = loaded.encode(
        [example("a", "?", num_images=1), example("b", "hi"), example("c", "?", num_images=2)],
        [[picture("red")], [], [picture("blue"), picture("green")]],
    )
    assert batch.extra_counts == {"pixel_values": (1, 0, 2)}
    for row, color in enumerate(colors):
        alone = loaded.encode([example("a", "?", num_images=1)], [[picture(color)]])
        assert torch.equal(batch.extras["pixel_values"][row], alone.extras["pixel_values"][0])


def test_an_image_takes_as_many_placeholders_as_the_tower_gives_features():
    loaded = tiny_llava()
    batch = loaded.encode([example("a", "?", num_images=2)], [[picture(), picture(size=(40, 24))]])
    assert int(torch.isin(batch.input_ids, torch.tensor(loaded.image_token_ids)).sum()) == 2 * 4


def test_text_prompts_alone_need_no_images_in_an_image_text_model():
    batch = tiny_llava().encode([example("a", "hi")], [[]])
    assert batch.extras == {}


def test_images_for_a_text_model_are_refused_by_the_name_of_the_example():
    with pytest.raises(AdapterError, match=r"example photo: 1 images for a model that reads text only"):
        tiny_text_model().encode([example("photo", "?", num_images=1)], [[picture()]])


@pytest.mark.parametrize("given", [[], [picture(), picture()]])
def test_a_wrong_number_of_images_is_refused_by_the_name_of_the_example(given):
    with pytest.raises(AdapterError, match=rf"example photo: 1 image parts .* {len(given)} images"):
        tiny_llava().encode([example("photo", "?", num_images=1)], [given])


def test_a_model_without_a_chat_template_says_what_to_do():
    tokenizer = copy.deepcopy(tiny_text_model().tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(AdapterError, match=r"no chat template; add a chat_template\.jinja"):
        replace(tiny_text_model(), processor=tokenizer).encode([example("a", "hi")], [[]])


def test_a_processor_that_reads_no_chat_template_is_not_to_be_given_one():
    processor = Blip2Processor(BlipImageProcessor(), copy.deepcopy(tiny_text_model().tokenizer))
    with pytest.raises(AdapterError, match="Blip2Processor reads no chat template"):
        encode_image_text(processor, [example("a", "hi")], [[]])


def test_a_template_that_refuses_a_turn_names_the_example_and_the_turns():
    tokenizer = copy.deepcopy(tiny_text_model().tokenizer)
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(
        AdapterError, match=r"example a: its turns \(system, user\) cannot be encoded: TemplateError: System"
    ):
        replace(tiny_text_model(), processor=tokenizer).encode([example("a", "hi", system="x")], [[]])


def test_positions_count_attended_tokens_only():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    positions = sequential_positions(torch.nn.Identity(), mask, mask, {})
    assert positions.tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3]]


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: tiny_text_model().model, id="llama"),
        pytest.param(lambda: tiny_llava().model, id="llava"),
        pytest.param(lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.0625)), id="cohere"),
        pytest.param(
            lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=0.05)), id="gemma2"
        ),
        pytest.param(lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=8.0)), id="granite"),
        pytest.param(
            lambda: HyperCLOVAXForCausalLM(HyperCLOVAXConfig(**SMALL, logits_scaling=0.3)), id="hyperclovax"
        ),
        pytest.param(lambda: GPTJForCausalLM(GPTJConfig(**SMALL_GPTJ)), id="bias"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_states_and_head_give_the_logits_of_the_model_bit_for_bit(model, dtype):
    built = copy.deepcopy(model()).eval().to(dtype)
    head = find_adapter(built.config.model_type).head(built)
    input_ids = torch.tensor([[7, 8, 9, 10]])
    mask = torch.ones_like(input_ids)
    positions = sequential_positions(built, input_ids, mask, {})
    with torch.no_grad():
        found = head.logits(hidden_states(built, input_ids, mask, positions, {}, None))
        expected = built(input_ids=input_ids, attention_mask=mask, position_ids=positions).logits
    assert found.dtype == dtype
    assert torch.equal(found, expected)


def test_the_head_holds_the_live_parameters():
    loaded = tiny_llava()
    assert output_head(loaded.model).weight is loaded.model.lm_head.weight


def test_all_stop_ids_of_generation_config_and_tokenizer_are_found_once():
    tokenizer = tiny_text_model().tokenizer
    assert find_stop_ids(GenerationConfig(eos_token_id=[9, 8]), tokenizer) == (tokenizer.eos_token_id, 9, 8)
    assert find_stop_ids(None, tokenizer) == (tokenizer.eos_token_id,)


def test_a_model_that_cannot_stop_is_refused():
    tokenizer = copy.deepcopy(tiny_text_model().tokenizer)
    tokenizer.eos_token = tokenizer.chat_template = None
    with pytest.raises(AdapterError, match="set eos_token_id"):
        find_stop_ids(GenerationConfig(), tokenizer)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10**9 }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 1 / 0 }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    ],
)
def test_a_chat_template_that_asks_for_too_much_is_one_line(template: str) -> None:
    tokenizer = copy.deepcopy(tiny_text_model().tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(AdapterError, match=r"example a: its turns \(user\) cannot be encoded") as caught:
        replace(tiny_text_model(), processor=tokenizer).encode([example("a", "hi")], [[]])
    assert str(caught.value).isprintable()
