from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlm_distill.data.columns import Columns
from vlm_distill.data.sources import ImageFolder
from vlm_distill.errors import DataError

COLUMNS = Columns(image="file", question="q", references="a", meta={"type": "type"})


def test_a_folder_gives_one_row_per_image_named_by_its_path(
    tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    for name in ("b.png", "sub/a.JPG", "notes.txt"):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture())
    rows = list(ImageFolder(path=str(tmp_path / "folder")).rows())
    assert [row.id for row in rows] == ["b.png", "sub/a.JPG"]
    assert rows[0].images[0]() == picture()


def test_metadata_of_a_folder_adds_columns_and_must_name_every_image(
    tmp_path: Path, picture: Callable[..., bytes], write_jsonl: Callable[[str, list[Any]], Path]
) -> None:
    rows = [{"file_name": "a.png", "q": "one?"}, {"file_name": "a.png", "q": "two?"}]
    write_jsonl("folder/metadata.jsonl", rows)
    (tmp_path / "folder" / "a.png").write_bytes(picture())
    source = ImageFolder(path=str(tmp_path / "folder"), columns=Columns(question="q"))
    assert [(row.id, row.question) for row in source.rows()] == [
        ("folder-0", "one?"),
        ("folder-1", "two?"),
    ]
    assert [row.images[0]() for row in source.rows()] == [picture()] * 2
    (tmp_path / "folder" / "b.png").write_bytes(picture())
    with pytest.raises(DataError, match=r"1 images of the folder have no row, the first is b.png"):
        list(source.rows())


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        list(ImageFolder(path=str(tmp_path)).rows())
