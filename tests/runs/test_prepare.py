"""What a run says of a table of its user's own before it reads it."""

import json
from pathlib import Path

import pytest

from vlm_distill.errors import DataError
from vlm_distill.runs.config import DataConfig
from vlm_distill.runs.prepare import about_data, recipe_of


def test_a_table_says_how_its_columns_are_taken_and_that_it_replaces_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"prompt": "a", "note": "b"}))
    line = "data: own: columns taken: prompt as question; not read: note"
    assert about_data(DataConfig(path=str(path))) == [line]
    both = DataConfig(path=str(path), recipe="easy_vqa", overrides=("split.held_out=0.5",))
    assert about_data(both) == [line, "data: data.path replaces the recipe 'easy_vqa', which is not read"]
    assert (recipe_of(both).name, recipe_of(both).split.held_out) == ("own", 0.5)
    assert about_data(DataConfig(recipe="easy_vqa")) == []


def test_a_table_that_could_be_two_things_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"prompt": "a", "question": "b"}))
    with pytest.raises(DataError, match="prompt and question are filled"):
        recipe_of(DataConfig(path=str(path)))
