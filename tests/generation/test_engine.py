import pytest

from tests.scripted_engine import ScriptedEngine
from tests.tiny import example, tiny_text_model
from vlm_distill.errors import EngineError
from vlm_distill.generation.engine import Sampling


def scripted(script: dict[str, tuple[str, ...]]) -> ScriptedEngine:
    tokenizer = tiny_text_model().tokenizer
    return ScriptedEngine(script=script, tokenizer=tokenizer, stop_id=tokenizer.eos_token_id, batch_size=2)


def test_a_script_is_answered_in_order_and_cut_at_max_new_tokens() -> None:
    engine = scripted({"a": ("red", "blue triangle green"), "b": ("no",)})
    examples = [example("b", "?"), example("a", "?")]
    completions = engine.generate(examples, Sampling(num_samples=3, max_new_tokens=6))
    assert [(one.example_id, one.sample_index) for one in completions] == [
        (n, i) for n in "ba" for i in range(3)
    ]
    assert [one.text for one in completions[:4]] == ["no", "no", "no", "red"]
    assert completions[3].token_ids == (*engine.tokenizer("red")["input_ids"], engine.stop_id)
    assert len(completions[4].token_ids) <= 6
    assert engine.plan(examples * 2, Sampling()) == [[0, 1], [2, 3]]


def test_a_text_without_room_for_its_stop_token_finishes_by_length() -> None:
    engine = scripted({"a": ("red blue triangle green",)})
    (cut,) = engine.generate([example("a", "?")], Sampling(max_new_tokens=2))
    assert cut.finish == "length"
    assert len(cut.token_ids) == 2
    assert "red blue triangle green".startswith(cut.text)


def test_an_example_without_a_script_names_the_nearest_one() -> None:
    with pytest.raises(EngineError, match="did you mean 'question-1'"):
        scripted({"question-1": ("x",)}).generate([example("question-2", "?")], Sampling())
