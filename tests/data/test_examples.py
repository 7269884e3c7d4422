import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlm_distill.config import decode
from vlm_distill.data.bad_rows import OnBadRow, RowError
from vlm_distill.data.columns import Columns
from vlm_distill.data.examples import (
    RecipeSource,
    example_from_json,
    example_to_json,
    read_examples,
)
from vlm_distill.data.images import ImageStore
from vlm_distill.data.sources import Files, ImageFolder, Source
from vlm_distill.errors import ConfigError, DataError, StorageError
from vlm_distill.progress import Log, silent
from vlm_distill.records import Example, Image, Message, Text

Write = Callable[[str, list[Any]], Path]
COLUMNS = Columns(image="file", question="q", references="a", meta={"type": "type", "n": "n"})


def source(path: Path, columns: Columns = COLUMNS) -> Files:
    return Files(paths=str(path), columns=columns)


def read(
    source: Source,
    images: ImageStore,
    *,
    on_bad_row: OnBadRow = "stop",
    log: Log = silent,
    **settings: Any,
) -> tuple[list[Example], dict[str, int]]:
    values = {"source": source.model_dump(), **settings}
    entry = decode(RecipeSource, values, where="recipe.yaml")
    return read_examples(entry, images, log=log, on_bad_row=on_bad_row)


def test_an_example_has_prompt_image_references_and_meta(questions: Path, store: ImageStore) -> None:
    examples, counts = read(source(questions), store, prompt="{{ question | upper }} ({{ type }})")
    example = examples[4]
    content = (Image(), Text(text="QUESTION 4? (t0)"))
    assert example.messages == (Message(role="user", content=content),)
    assert store.load(example.images[0]).getpixel((0, 0)) == (1, 20, 30)
    assert (example.references, example.meta) == (("yes",), {"type": "t0", "n": "4"})
    assert counts == {"read": 12}
    assert len({example.images for example in examples}) == 4


def test_reading_twice_gives_equal_examples(questions: Path, store: ImageStore) -> None:
    first = read(source(questions), store)
    assert first == read(source(questions), store)


def test_a_system_message_stands_first(questions: Path, store: ImageStore) -> None:
    examples, _ = read(source(questions), store, system="Be brief.")
    assert examples[0].messages[0] == Message(role="system", content=(Text(text="Be brief."),))
    assert isinstance(examples[0].messages[1].content[0], Image)


def test_a_prompt_can_loop_over_a_list_column(write_jsonl: Write, store: ImageStore) -> None:
    path = write_jsonl("c.jsonl", [{"q": "Which?", "options": ["red", "blue"]}])
    columns = Columns(question="q", meta={"options": "options"})
    prompt = "{{ question }}{% for option in options %}\n{{ 'AB'[loop.index0] }}. {{ option }}{% endfor %}"
    (example,), _ = read(source(path, columns), store, prompt=prompt)
    assert example.messages[0].content == (Text(text="Which?\nA. red\nB. blue"),)
    assert example.meta == {"options": '["red", "blue"]'}


def test_a_fixed_prompt_serves_a_folder_of_images(tmp_path: Path, questions: Path, store: ImageStore) -> None:
    examples, _ = read(ImageFolder(path=str(tmp_path / "images")), store, prompt="Describe it.")
    assert [example.id for example in examples] == ["0.png", "1.png", "2.png", "3.png"]
    assert examples[0].messages[0].content == (Image(), Text(text="Describe it."))


def test_an_image_marker_in_the_prompt_is_its_place(questions: Path, store: ImageStore) -> None:
    examples, _ = read(source(questions), store, prompt="{{ question }} Look: <image>")
    assert examples[0].messages[0].content == (Text(text="question 0? Look: "), Image())


def test_a_question_that_names_the_marker_without_an_image_is_text(
    write_jsonl: Write, store: ImageStore
) -> None:
    path, lines = write_jsonl("t.jsonl", [{"q": "what does <image> mean?"}]), list[str]()
    (example,), _ = read(source(path, Columns(question="q")), store, log=lines.append)
    assert lines == ["t: in 1 rows <image> is kept as a word"]
    assert example.messages[0].content == (Text(text="what does <image> mean?"),)


def test_an_unknown_variable_is_an_error_that_names_the_nearest_one(
    questions: Path, store: ImageStore
) -> None:
    with pytest.raises(RowError, match=r"row 0: .*'qestion' is undefined; did you mean 'question'"):
        read(source(questions), store, prompt="{{ qestion }}")


@pytest.mark.parametrize(
    "prompt",
    [
        "{{ question.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ references.append('x') }}",
        "{{ question + 1 }}",
        "{% include '/etc/passwd' %}",
        "{{ question ",
    ],
)
def test_a_template_cannot_leave_the_sandbox(questions: Path, store: ImageStore, prompt: str) -> None:
    with pytest.raises((RowError, ConfigError), match="prompt template"):
        read(source(questions), store, prompt=prompt)


def test_two_rows_with_one_id_are_an_error(questions: Path, store: ImageStore) -> None:
    with pytest.raises(DataError, match="row 2: an earlier row has the id 't0' too"):
        read(source(questions, Columns(id="type", question="q")), store)


def test_a_bad_image_stops_or_is_skipped_and_counted(
    tmp_path: Path, questions: Path, store: ImageStore
) -> None:
    lines: list[str] = []
    (tmp_path / "images" / "1.png").write_bytes(b"broken")
    (tmp_path / "images" / "3.png").unlink()
    with pytest.raises(DataError, match=r"row 3 \(id .*\): not an image"):
        read(source(questions), store)
    examples, counts = read(source(questions), store, on_bad_row="skip", log=lines.append)
    assert counts == {"read": 12, "bad_image": 6}
    assert [example.id for example in examples] == [f"questions-{n}" for n in (0, 1, 2, 6, 7, 8)]
    assert [line.split(": ")[0] for line in lines] == ["skipped"]


def test_a_picture_that_cannot_be_stored_is_no_bad_row(questions: Path, store: ImageStore) -> None:
    store.root.touch()
    with pytest.raises(StorageError, match="cannot be written"):
        read(source(questions), store, on_bad_row="skip")


@pytest.mark.parametrize(
    ("filters", "reason", "kept"),
    [
        ({"min_characters": 12}, "min_characters", 2),
        ({"max_characters": 11}, "max_characters", 10),
        ({"references_in": ["red", "blue"]}, "references_in", 4),
        ({"references_not_in": ["yes"]}, "references_not_in", 4),
        ({"meta": {"type": "t1"}}, "meta_type", 6),
        ({"meta": {"n": "3"}}, "meta_n", 1),
    ],
)
def test_filters_drop_rows_and_count_them(
    questions: Path, store: ImageStore, filters: dict[str, Any], reason: str, kept: int
) -> None:
    examples, counts = read(source(questions), store, filters=filters)
    assert len(examples) == kept
    assert counts == {"read": 12, f"filtered_{reason}": 12 - kept}


def test_a_filter_on_an_unknown_meta_name_is_an_error(questions: Path, store: ImageStore) -> None:
    with pytest.raises(DataError, match=r"row 0: filter on meta 'typ'.* did you mean 'type'"):
        read(source(questions), store, filters={"meta": {"typ": "t1"}})


def test_images_of_filtered_rows_are_not_stored(questions: Path, store: ImageStore) -> None:
    read(source(questions), store, filters={"meta": {"n": "3"}})
    assert len([path for path in store.root.rglob("*") if path.is_file()]) == 1


def test_a_limit_ends_reading(questions: Path, store: ImageStore) -> None:
    examples, counts = read(source(questions), store, limit=5)
    assert (len(examples), counts["read"]) == (5, 5)


def test_a_prompt_beside_messages_is_an_error_and_not_ignored(write_jsonl: Write, store: ImageStore) -> None:
    path = write_jsonl("m.jsonl", [{"m": [{"role": "user", "content": "hi"}]}])
    with pytest.raises(ConfigError, match=r"prompt has no effect beside columns.messages"):
        read(source(path, Columns(messages="m")), store, prompt="Hello {{ question }}")


def test_a_second_system_message_is_an_error(write_jsonl: Write, store: ImageStore) -> None:
    turns = [{"role": "system", "content": "a"}, {"role": "user", "content": "hi"}]
    path = write_jsonl("m.jsonl", [{"m": turns}])
    with pytest.raises(DataError, match="row 0: the row has a system message of its own"):
        read(source(path, Columns(messages="m")), store, system="b")


def test_an_example_survives_json() -> None:
    example = Example(
        id="ü-1",
        messages=(
            Message(role="system", content=(Text(text="s"),)),
            Message(role="user", content=(Text(text="a\n"), Image(), Image())),
            Message(role="assistant", content=(Text(text="b"),)),
            Message(role="user", content=()),
        ),
        images=("0" * 64, "1" * 64),
        references=("x", "y"),
        meta={"k": "v"},
    )
    assert example_from_json(json.loads(json.dumps(example_to_json(example)))) == example
