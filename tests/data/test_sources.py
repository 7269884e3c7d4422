import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import Field

from vlm_distill.config import Record, decode
from vlm_distill.data.columns import Columns
from vlm_distill.data.sources import (
    Files,
    Hub,
    ImageFolder,
    PackageData,
    Source,
    read_rows,
    source_name,
    source_state,
)
from vlm_distill.errors import ConfigError, DataError

COLUMNS = Columns(image="file", question="q", references="a", meta={"type": "type"})


def files(path: Path | str, **changes: Any) -> Files:
    return Files(paths=str(path), **{"columns": COLUMNS, **changes})


def test_rows_have_the_values_of_their_columns(questions: Path, picture: Callable[..., bytes]) -> None:
    rows = list(read_rows(files(questions)))
    assert len(rows) == 12
    row = rows[4]
    assert (row.id, row.question, row.references, row.meta) == (
        "questions-4",
        "question 4?",
        ("yes",),
        {"type": "t0"},
    )
    assert [load() for load in row.images] == [picture(1)]
    assert row.where == f"{questions} row 4"


def test_ids_without_an_id_column_are_stable_and_begin_with_the_name(questions: Path) -> None:
    first = [row.id for row in read_rows(files(questions, name="mine"))]
    assert first == [row.id for row in read_rows(files(questions, name="mine"))]
    assert first[:2] == ["mine-0", "mine-1"]
    assert len(set(first)) == 12


def test_an_id_may_be_a_template(questions: Path) -> None:
    source = files(questions, columns=Columns(id="q-{n}", question="q"))
    assert [row.id for row in read_rows(source)][3] == "q-3"


def test_a_pattern_reads_files_in_the_order_of_their_names(
    tmp_path: Path, write_jsonl: Callable[[str, list[Any]], Path]
) -> None:
    for name in ("b", "a"):
        write_jsonl(f"parts/{name}.jsonl", [{"q": name}])
    source = files(tmp_path / "parts" / "*.jsonl", name="p", columns=Columns(question="q"))
    assert [(row.id, row.question) for row in read_rows(source)] == [("p-0", "a"), ("p-1", "b")]


def test_image_paths_start_at_image_root(
    tmp_path: Path, questions: Path, picture: Callable[..., bytes]
) -> None:
    moved = tmp_path / "elsewhere" / "q.jsonl"
    moved.parent.mkdir()
    questions.rename(moved)
    with pytest.raises(DataError, match=r"row 0: no image file .* set image_root"):
        next(iter(read_rows(files(moved)))).images[0]()
    row = next(iter(read_rows(files(moved, image_root=str(tmp_path)))))
    assert row.images[0]() == picture(0)


def test_parquet_holds_images_as_hugging_face_stores_them(
    tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    path = tmp_path / "t.parquet"
    pictures = [{"bytes": picture(shade), "path": None} for shade in range(2)]
    table = {"pictures": [pictures], "q": ["which?"], "answers": [[{"answer": "left"}, {"answer": "right"}]]}
    pq.write_table(pa.table(table), path)
    row = next(
        iter(read_rows(files(path, columns=Columns(images="pictures", question="q", references="answers"))))
    )
    assert [load() for load in row.images] == [picture(0), picture(1)]
    assert row.references == ("left", "right")


def test_several_image_columns_may_be_empty_where_marked(
    write_jsonl: Callable[[str, list[Any]], Path], questions: Path
) -> None:
    path = write_jsonl(
        "m.jsonl",
        [
            {"i1": "images/0.png", "i2": None, "q": "a"},
            {"i1": "images/0.png", "i2": "images/1.png", "q": "b"},
        ],
    )
    source = files(path, columns=Columns(images=["i1", "i2?"], question="q"))
    assert [len(row.images) for row in read_rows(source)] == [1, 2]
    with pytest.raises(DataError, match=r"row 0: column 'i2' .images. is empty"):
        list(read_rows(files(path, columns=Columns(images=["i1", "i2"], question="q"))))


def test_llava_conversations_give_messages_and_the_last_answer(
    write_jsonl: Callable[[str, list[Any]], Path],
) -> None:
    turns = [{"from": "human", "value": "Name a colour."}, {"from": "gpt", "value": "Red."}]
    path = write_jsonl("llava.jsonl", [{"id": "7", "conversations": turns}])
    source = files(path, columns=Columns(id="id", image="image?", messages="conversations"))
    row = next(iter(read_rows(source)))
    assert (row.id, row.images, row.references, row.asked) == ("7", (), ("Red.",), "Name a colour.")


@pytest.mark.parametrize(
    ("value", "references"),
    [("a", ("a",)), (3, ("3",)), (["a", "b"], ("a", "b")), ([{"answer": "a", "n": 1}], ("a",)), ([], ())],
)
def test_references_have_three_forms(
    write_jsonl: Callable[[str, list[Any]], Path], value: Any, references: tuple[str, ...]
) -> None:
    source = files(write_jsonl("r.jsonl", [{"a": value}]), columns=Columns(references="a"))
    assert next(iter(read_rows(source))).references == references


@pytest.mark.parametrize("value", [{"text": "a"}, [{"text": "a"}], [None], True])
def test_other_forms_of_references_are_errors(
    write_jsonl: Callable[[str, list[Any]], Path], value: Any
) -> None:
    source = files(write_jsonl("r.jsonl", [{"a": value}]), columns=Columns(references="a"))
    with pytest.raises(DataError, match="row 0: expected "):
        list(read_rows(source))


def test_a_missing_column_is_an_error_that_names_row_and_nearest_column(questions: Path) -> None:
    with pytest.raises(
        DataError, match=r"questions.jsonl row 0: no column 'fiel' \(image\); did you mean 'file'"
    ):
        list(read_rows(files(questions, columns=Columns(image="fiel", question="q"))))


def test_package_data_is_read_without_importing_the_package(
    tmp_path: Path, picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "tiny_vqa_package"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "data" / "q.json").write_text(json.dumps([["what?", "red", 5]]))
    (package / "data" / "5.png").write_bytes(picture())
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    columns = Columns(question=0, references=1, image="data/{2}.png")
    source = PackageData(package="tiny_vqa_package", file="data/q.json", columns=columns)
    row = next(iter(read_rows(source)))
    assert (row.id, row.question, row.images[0]()) == ("tiny_vqa_package-0", "what?", picture())
    assert "tiny_vqa_package" not in sys.modules
    with pytest.raises(DataError, match=r"no file 'data/x.json'"):
        list(read_rows(source.model_copy(update={"file": "data/x.json"})))
    with pytest.raises(DataError, match="leaves"):
        list(read_rows(source.model_copy(update={"file": "../secret.json"})))


def test_a_package_that_is_not_installed_says_how_to_install_it() -> None:
    source = PackageData(package="no_such_package_here", file="q.json", columns=Columns())
    with pytest.raises(DataError, match=r"'no_such_package_here' is not installed .* pip install"):
        list(read_rows(source))


def test_a_folder_gives_one_row_per_image_named_by_its_path(
    tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    for name in ("b.png", "sub/a.JPG", "notes.txt"):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture())
    rows = list(read_rows(ImageFolder(path=str(tmp_path / "folder"))))
    assert [row.id for row in rows] == ["b.png", "sub/a.JPG"]
    assert rows[0].images[0]() == picture()


def test_metadata_of_a_folder_adds_columns_and_must_name_every_image(
    tmp_path: Path, picture: Callable[..., bytes], write_jsonl: Callable[[str, list[Any]], Path]
) -> None:
    rows = [{"file_name": "a.png", "q": "one?"}, {"file_name": "a.png", "q": "two?"}]
    write_jsonl("folder/metadata.jsonl", rows)
    (tmp_path / "folder" / "a.png").write_bytes(picture())
    source = ImageFolder(path=str(tmp_path / "folder"), columns=Columns(question="q"))
    assert [(row.id, row.question) for row in read_rows(source)] == [
        ("folder-0", "one?"),
        ("folder-1", "two?"),
    ]
    assert [row.images[0]() for row in read_rows(source)] == [picture()] * 2
    (tmp_path / "folder" / "b.png").write_bytes(picture())
    with pytest.raises(DataError, match=r"1 images of the folder have no row, the first is b.png"):
        list(read_rows(source))


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        list(read_rows(ImageFolder(path=str(tmp_path))))


@pytest.mark.filterwarnings("default")  # of the datasets library, not ours
@pytest.mark.parametrize("streaming", [False, True])
def test_a_hugging_face_data_set_gives_the_bytes_of_its_images(
    tmp_path: Path, picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    images = [{"bytes": picture(shade, format="JPEG"), "path": None} for shade in range(3)]
    features = datasets.Features(
        {"image": datasets.Image(), "pages": datasets.List(datasets.Image()), "q": datasets.Value("string")}
    )
    made = datasets.Dataset.from_dict(
        {"image": images, "pages": [images[:2]] * 3, "q": ["a", "b", "c"]}, features=features
    )
    (tmp_path / "set").mkdir()
    made.to_parquet(tmp_path / "set" / "train-00000-of-00001.parquet")
    source = Hub(
        path=str(tmp_path / "set"),
        split="train",
        streaming=streaming,
        columns=Columns(image="image", question="q"),
    )
    rows = list(read_rows(source))
    assert [row.images[0]() for row in rows] == [image["bytes"] for image in images]
    assert rows[1].id == "set-1"
    pages = source.model_copy(update={"columns": Columns(images="pages")})
    assert [load() for load in next(iter(read_rows(pages))).images] == [
        picture(0, format="JPEG"),
        picture(1, format="JPEG"),
    ]
    with pytest.raises(DataError, match="split 'nope': cannot be loaded"):
        list(read_rows(source.model_copy(update={"split": "nope"})))


def test_a_hugging_face_data_set_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    source = Hub(path=str(tmp_path / "nothing"), split="train", columns=Columns())
    with pytest.raises(DataError, match="nothing', split 'train': cannot be loaded"):
        list(read_rows(source))


def test_the_state_of_a_source_changes_with_its_file(questions: Path) -> None:
    before = source_state(files(questions))
    assert before == source_state(files(questions))
    with questions.open("a") as handle:
        handle.write("\n")
    assert source_state(files(questions)) != before


def test_a_missing_file_is_an_error_that_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing.json.*looked at /"):
        list(read_rows(files(tmp_path / "nothing.json")))


def test_sources_are_told_apart_by_kind() -> None:
    class Holder(Record):
        source: Source = Field()

    value = {"source": {"kind": "hub", "path": "org/set", "split": "test", "columns": {"question": "q"}}}
    assert source_name(decode(Holder, value, where="x.yaml").source) == "set"
    with pytest.raises(ConfigError, match=r"source.kind: unknown kind 'hubb'; did you mean 'hub'"):
        decode(Holder, {"source": {"kind": "hubb"}}, where="x.yaml")
    with pytest.raises(ConfigError, match="paths"):
        decode(Holder, {"source": {"kind": "files", "paths": [], "columns": {}}}, where="x.yaml")
