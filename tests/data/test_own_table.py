import json
from pathlib import Path

import pytest

from tests.tiny import picture
from vlm_distill.data.own_table import recipe_for_table
from vlm_distill.data.recipe import prepare
from vlm_distill.errors import DataError


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_table_of_prompts_becomes_training_and_held_out_examples(tmp_path: Path) -> None:
    table = write(tmp_path / "own.jsonl", [{"prompt": f"Question {number}?"} for number in range(60)])
    recipe = recipe_for_table(table)
    assert recipe.name == "own"
    dataset = prepare(recipe, tmp_path / "data", print)
    assert len(dataset.train) + len(dataset.held_out) == 60
    assert 0 < len(dataset.held_out) < 20
    assert all(example.messages[0].content[0].text.startswith("Question") for example in dataset.train)


def test_images_and_references_may_be_missing_in_some_rows(tmp_path: Path) -> None:
    picture("red").save(tmp_path / "red.png")
    rows = [
        {"id": "a", "question": "What color?", "image": "red.png", "answer": "red"},
        {"id": "b", "question": "Hello?"},
    ]
    recipe = recipe_for_table(write(tmp_path / "own.jsonl", rows))
    recipe = recipe.model_copy(update={"split": recipe.split.model_copy(update={"held_out": 0.0})})
    first, second = prepare(recipe, tmp_path / "data", print).train
    assert (first.id, len(first.images), first.references) == ("a", 1, ("red",))
    assert (second.id, second.images, second.references) == ("b", (), ())


def test_messages_win_over_a_question_beside_them(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}]
    recipe = recipe_for_table(write(tmp_path / "own.jsonl", [{"messages": chat, "prompt": "unused"}]))
    assert recipe.sources[0].source.columns.messages == "messages"
    assert recipe.sources[0].source.columns.question is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "expected rows with prompts, found none"),
        ([["a", "b"]], "expected named columns"),
        ([{"words": "x"}], r"expected a column of prompts \(messages, .*\), got words"),
    ],
)
def test_a_table_without_prompts_says_what_was_expected(tmp_path: Path, rows, message: str) -> None:
    with pytest.raises(DataError, match=message):
        recipe_for_table(write(tmp_path / "own.jsonl", rows))
