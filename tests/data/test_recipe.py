import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlm_distill.config import asset_folder, decode, parse_yaml, shipped
from vlm_distill.data.columns import Columns
from vlm_distill.data.dataset import MANIFEST, open_dataset, used_images
from vlm_distill.data.examples import RecipeSource
from vlm_distill.data.recipe import Recipe, load_recipe, prepare
from vlm_distill.data.sources import Files
from vlm_distill.errors import ConfigError, DataError
from vlm_distill.files import read_json

Write = Callable[[str, list[Any]], Path]
COLUMNS = Columns(image="file", question="q", references="a")


def silent(line: str) -> None:
    assert "\n" not in line


def recipe(path: Path, **changes: Any) -> Recipe:
    source = RecipeSource(source=Files(name="mine", paths=str(path), columns=COLUMNS))
    return Recipe(**{"name": "test", "sources": [source], "split": {"held_out": 0.4, "seed": 1}, **changes})


def text_source(path: Path, **changes: Any) -> dict[str, Any]:
    columns = {"question": "q", "id": "{id}"}
    return {"source": {"kind": "files", "paths": str(path), "columns": columns}, **changes}


def test_a_prepared_recipe_opens_as_it_was_returned(tmp_path: Path, questions: Path) -> None:
    made = prepare(recipe(questions), tmp_path / "data", silent)
    opened = open_dataset(tmp_path / "data")
    assert (opened.train, opened.held_out, opened.fingerprint) == (
        made.train,
        made.held_out,
        made.fingerprint,
    )
    assert opened.images.load(opened.train[0].images[0]).size == (4, 3)
    assert made.counts == {
        "read": 12,
        "duplicates": 0,
        "left_out_by_mixture": 0,
        "train": len(made.train),
        "held_out": 12 - len(made.train),
        "train_images": len(used_images(made.train)),
        "held_out_images": len(used_images(made.held_out)),
    }
    assert made.held_out


def test_the_log_names_the_columns_that_no_source_reads(tmp_path: Path, questions: Path) -> None:
    lines: list[str] = []
    prepare(recipe(questions), tmp_path / "data", lines.append)
    assert lines[0] == "mine: columns not read: n, type"
    columns = COLUMNS.model_copy(update={"ignore": ["n", "type"]})
    silenced = RecipeSource(source=Files(name="mine", paths=str(questions), columns=columns))
    prepare(recipe(questions, sources=[silenced]), tmp_path / "data", lines.append)
    assert not any("not read" in line for line in lines[2:])


def test_a_recipe_of_which_nothing_is_held_out_says_so(tmp_path: Path, write_jsonl: Write) -> None:
    lines: list[str] = []
    source = text_source(write_jsonl("t.jsonl", [{"id": "a", "q": "b?"}]))
    made = {"name": "r", "sources": [source]}
    prepare(decode(Recipe, {**made, "split": {"held_out": 0.01}}, where="r"), tmp_path / "few", lines.append)
    assert "r: nothing is held out, for 1 examples are few; raise split.held_out" in lines
    with pytest.raises(DataError, match=r"no example is left to train on: .* hold less out than 0.99"):
        prepare(decode(Recipe, {**made, "split": {"held_out": 0.99}}, where="r"), tmp_path / "all", silent)
    prepare(decode(Recipe, made, where="r"), tmp_path / "none", lines.append)
    assert sum("nothing is held out" in line for line in lines) == 1


def test_an_unchanged_recipe_is_not_prepared_again(tmp_path: Path, questions: Path) -> None:
    lines: list[str] = []
    first = prepare(recipe(questions), tmp_path / "data", lines.append)
    before = (tmp_path / "data" / MANIFEST).stat().st_mtime_ns
    again = prepare(recipe(questions), tmp_path / "data", lines.append)
    assert (tmp_path / "data" / MANIFEST).stat().st_mtime_ns == before
    assert again.train == first.train
    assert "already prepared" in lines[-1]


def test_a_changed_recipe_or_source_is_prepared_again(tmp_path: Path, questions: Path) -> None:
    folder = tmp_path / "data"
    first = prepare(recipe(questions), folder, silent)
    other = prepare(recipe(questions, split={"held_out": 0.0}), folder, silent)
    assert (len(other.train), other.fingerprint != first.fingerprint) == (12, True)
    with questions.open("a") as handle:
        handle.write(json.dumps({"file": "images/0.png", "q": "new?", "a": "yes"}) + "\n")
    assert len(prepare(recipe(questions, split={"held_out": 0.0}), folder, silent).train) == 13


@pytest.mark.parametrize("damage", ["train.jsonl", "held_out.jsonl", "images"])
def test_damage_is_found_when_opened_and_mended_by_preparing(
    tmp_path: Path, questions: Path, damage: str
) -> None:
    folder = tmp_path / "data"
    first = prepare(recipe(questions), folder, silent)
    if damage == "images":
        first.images.path(first.train[0].images[0]).unlink()
    else:
        with (folder / damage).open("a") as handle:
            handle.write("{}\n")
    with pytest.raises(DataError, match=f"{damage}.*prepare the data again"):
        open_dataset(folder)
    assert prepare(recipe(questions), folder, silent).train == first.train


def test_the_manifest_says_in_words_where_the_examples_are_from(tmp_path: Path, questions: Path) -> None:
    prepare(made := recipe(questions), tmp_path / "data", silent)
    [source] = [entry.source for entry in made.sources]
    expected = [{"text": source.describe(), "hub_id": None}]
    assert read_json(tmp_path / "data" / MANIFEST)["sources"] == expected


def test_a_preparation_that_fails_leaves_nothing_that_looks_complete(tmp_path: Path, questions: Path) -> None:
    folder = tmp_path / "data"
    prepare(recipe(questions), folder, silent)
    (tmp_path / "images" / "2.png").write_bytes(b"broken")
    (folder / MANIFEST).unlink()
    with pytest.raises(DataError, match=r"row 6 \(id .*\): not an image"):
        prepare(recipe(questions), folder, silent)
    with pytest.raises(DataError, match=r"no prepared data \(no manifest.json\)"):
        open_dataset(folder)


def test_a_damaged_manifest_is_an_error_that_names_it(tmp_path: Path, questions: Path) -> None:
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(DataError, match=r"manifest.json: damaged .*prepare the data again"):
        open_dataset(tmp_path)
    (tmp_path / MANIFEST).write_text('{"format_version": 99}')
    with pytest.raises(DataError, match="expected format version 1, got 99"):
        prepare(recipe(questions), tmp_path, silent)


def test_duplicates_are_dropped_once_counted_and_the_first_is_kept(
    tmp_path: Path, write_jsonl: Write
) -> None:
    rows = [{"id": f"r{n}", "q": f"q{n % 3}"} for n in range(7)]
    value = {"name": "d", "sources": [text_source(write_jsonl("d.jsonl", rows))]}
    data = prepare(decode(Recipe, value, where="d"), tmp_path / "data", silent)
    assert [example.id for example in data.train] == ["r0", "r1", "r2"]
    assert data.counts["duplicates"] == 4
    kept = prepare(decode(Recipe, {**value, "deduplicate": False}, where="d"), tmp_path / "data", silent)
    assert len(kept.train) == 7


def test_a_mixture_counts_what_it_leaves_out_and_every_source(tmp_path: Path, write_jsonl: Write) -> None:
    a = write_jsonl("a.jsonl", [{"id": f"a{n}", "q": f"a{n}"} for n in range(40)])
    b = write_jsonl("b.jsonl", [{"id": f"b{n}", "q": f"b{n}"} for n in range(10)])
    value = {"name": "m", "sources": [text_source(a, weight=1), text_source(b, weight=1)]}
    data = prepare(decode(Recipe, value, where="m"), tmp_path / "data", silent)
    assert "".join(example.id[0] for example in data.train) == "ab" * 10
    assert (data.counts["left_out_by_mixture"], data.counts["a/read"], data.counts["b/read"]) == (30, 40, 10)


def test_sources_that_share_ids_are_an_error_that_says_what_to_write(
    tmp_path: Path, write_jsonl: Write
) -> None:
    paths = [write_jsonl(f"{name}.jsonl", [{"id": "1", "q": name}]) for name in "ab"]
    value = {"name": "m", "sources": [text_source(path) for path in paths]}
    with pytest.raises(
        DataError, match=r"sources 'a' and 'b' share the id '1'; write columns.id as a template"
    ):
        prepare(decode(Recipe, value, where="m"), tmp_path / "data", silent)


def test_a_recipe_without_examples_is_an_error_with_the_counts(tmp_path: Path, write_jsonl: Write) -> None:
    path = write_jsonl("a.jsonl", [{"id": "1", "q": "a"}])
    value = {"name": "e", "sources": [text_source(path, filters={"min_characters": 5})]}
    with pytest.raises(DataError, match=r"recipe e: no example is left .* read 1, filtered_min_characters 1"):
        prepare(decode(Recipe, value, where="e"), tmp_path / "data", silent)
    assert not (tmp_path / "data" / MANIFEST).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": []}, "sources"),
        ({"splitt": {}}, "did you mean 'split'"),
        ({"split": {"held_out": 1.0}}, "split.held_out"),
        (
            {"sources": [text_source(Path("a.jsonl")), text_source(Path("a.jsonl"))]},
            "two sources are called 'a'",
        ),
        (
            {"sources": [text_source(Path("a.jsonl"), weight=1), text_source(Path("b.jsonl"))]},
            "for every source or for none",
        ),
        ({"sources": [text_source(Path("a.jsonl"), prompt="{{ question ")]}, "not a valid prompt template"),
    ],
)
def test_a_wrong_recipe_does_not_decode(change: dict[str, Any], message: str) -> None:
    value = {"name": "r", "sources": [text_source(Path("a.jsonl"))], **change}
    with pytest.raises(ConfigError, match=message):
        decode(Recipe, value, where="r.yaml")


def test_a_recipe_file_takes_overrides(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "sources": [text_source(Path("a.jsonl"))]}))
    loaded = load_recipe(str(path), ["split.held_out=0.25", "sources.0.limit=3"])
    assert (loaded.split.held_out, loaded.sources[0].limit) == (0.25, 3)
    with pytest.raises(ConfigError, match="no shipped data_recipes entry"):
        load_recipe("no_such_recipe")


@pytest.mark.parametrize("name", sorted(shipped("data_recipes")))
def test_every_shipped_recipe_decodes_and_says_what_it_is_for(name: str) -> None:
    assert load_recipe(name).name == name
    assert shipped("data_recipes")[name].read_text(encoding="utf-8").startswith("# ")


def test_every_example_in_the_readme_decodes() -> None:
    text = (asset_folder("data_recipes") / "README.md").read_text(encoding="utf-8")
    whole, sources = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    decode(Recipe, parse_yaml(whole, where="README"), where="README")
    pieces = [
        decode(RecipeSource, parse_yaml(piece, where="README"), where="README")
        for piece in sources.split("\n\n")
    ]
    assert {piece.source.kind for piece in pieces} == {"files", "image_folder", "hub", "package_data"}


@pytest.mark.parametrize("name", sorted(shipped("data_recipes")))
def test_the_readme_lists_every_shipped_recipe(name: str) -> None:
    assert f"| `{name}` |" in (asset_folder("data_recipes") / "README.md").read_text(encoding="utf-8")
