import logging
import unicodedata
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
    *_, bad = source.rows()
    assert "1 images of the folder have no row, one is b.png" in str(bad)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        list(ImageFolder(path=str(tmp_path)).rows())


def test_pictures_of_all_readable_suffixes_are_taken_and_the_rest_is_counted(
    tmp_path: Path, picture: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    taken = ["a.jfif", "b.PNG", "c.avif", "d.jp2", "e.tga", "f.ico", "g.jpe"]
    hidden = [".h.png", ".cache/i.png", "__MACOSX/j.png", "Thumbs.db", ".DS_Store"]
    others = ["k.txt", "l.txt", "m.pdf", "n.eps", "README"]
    for name in taken + hidden + others:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture())
    (tmp_path / "linked").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "absent.png")
    source = ImageFolder(path=str(tmp_path))
    with caplog.at_level(logging.INFO):
        assert [row.id for row in source.rows()] == taken
    listed = ".txt 2, links to folders or nowhere, pipes and the like 2, no suffix 1, .pdf 1, .eps 1"
    assert f"7 files are no images and left out: {listed}" in caplog.text
    before = source.state()
    (tmp_path / ".DS_Store").write_bytes(b"changed by looking at it")
    assert source.state() == before


@pytest.mark.parametrize(
    "name", ["./sub/a b\u00e9.png", "sub//a b\u00e9.png", "sub\\a b\u00e9.png", "sub/../SUB/A b\u00e9.PNG"]
)
def test_metadata_finds_its_images_however_it_spells_them(
    tmp_path: Path, picture: Callable[..., bytes], write_jsonl: Callable[[str, list[Any]], Path], name: str
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / unicodedata.normalize("NFD", "a b\u00e9.png")).write_bytes(picture())
    write_jsonl("metadata.jsonl", [{"file_name": name}])
    [row] = ImageFolder(path=str(tmp_path)).rows()
    assert row.images[0]() == picture()


def test_names_that_differ_in_case_alone_mean_different_images(
    tmp_path: Path, picture: Callable[..., bytes], write_jsonl: Callable[[str, list[Any]], Path]
) -> None:
    for shade, name in enumerate(("a.png", "A.png")):
        (tmp_path / name).write_bytes(picture(shade))
    write_jsonl("metadata.jsonl", [{"file_name": "A.png"}, {"file_name": "./a.png"}])
    assert [row.images[0]() for row in ImageFolder(path=str(tmp_path)).rows()] == [picture(1), picture(0)]


def test_metadata_of_a_subfolder_names_images_from_there(
    tmp_path: Path, picture: Callable[..., bytes], write_jsonl: Callable[[str, list[Any]], Path]
) -> None:
    for shade, name in enumerate(("train", "test")):
        write_jsonl(f"{name}/metadata.jsonl", [{"file_name": "a.png", "q": name}])
        (tmp_path / name / "a.png").write_bytes(picture(shade))
    rows = list(ImageFolder(path=str(tmp_path), columns=Columns(question="q")).rows())
    found = {row.question: row.images[0]() for row in rows}
    assert found == {"train": picture(0), "test": picture(1)}
    (tmp_path / "test" / "metadata.csv").write_text("file_name\na.png\n")
    with pytest.raises(DataError, match=r"test: expected one of metadata\.jsonl, .* found several"):
        list(ImageFolder(path=str(tmp_path)).rows())
