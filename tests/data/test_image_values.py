import base64
import hashlib
import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_distill.data.image_values import MAX_BYTES, image_bytes
from vlm_distill.errors import DataError


@pytest.fixture
def root(tmp_path: Path, picture: Callable[..., bytes]) -> Path:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "a.png").write_bytes(picture())
    (tmp_path / "secret.png").write_bytes(picture(9))
    return tmp_path / "data"


def read(value: Any, root: Path | None = None) -> bytes:
    return image_bytes(value, root=root, where="row 5")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF"])
def test_base64_of_common_formats_is_recognised(picture: Callable[..., bytes], format: str) -> None:
    data = picture(format=format)
    text = base64.b64encode(data).decode()
    assert read(text) == data
    assert read(f"data:image/{format.lower()};base64,{text}") == data
    assert read(f"DATA:image/{format};Base64,{text}") == data


def test_bytes_records_and_paths_mean_the_same_file(root: Path, picture: Callable[..., bytes]) -> None:
    data = picture()
    for value in (
        data,
        bytearray(data),
        {"bytes": data, "path": None},
        {"bytes": None, "path": "deep/a.png"},
        "deep/a.png",
    ):
        assert read(value, root) == data
    assert read(str(root / "deep" / "a.png")) == data


def test_a_decoded_image_is_encoded_without_loss_and_always_the_same(picture: Callable[..., bytes]) -> None:
    image = Image.open(BytesIO(picture(format="JPEG")))
    again = Image.open(BytesIO(read(image)))
    assert again.tobytes() == image.tobytes()
    assert hashlib.sha256(read(image)).digest() == hashlib.sha256(read(again)).digest()


@pytest.mark.parametrize("name", ["../secret.png", "deep/../../secret.png", "deep/../../data/../secret.png"])
def test_a_relative_path_cannot_leave_its_root(root: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"row 5: .* leaves"):
        read(name, root)


def test_dots_that_stay_inside_are_fine(root: Path, picture: Callable[..., bytes]) -> None:
    assert read("deep/../deep/./a.png", root) == picture()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("https://example.com/a.png", "images are not downloaded"),
        ("nowhere.png", "no image file at .*nowhere.png"),
        ("deep", "no image file at .*deep"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("data:image/png,abc", "expected a data: URL in base64"),
        ("iVBORw0KGgo*", "not valid base64"),
        ("iVBORw0KGgoé", "not valid base64"),
        ("a\0b.png", "no image file at"),
        (7, "expected an image .* got int"),
        ({"url": "a"}, "got a record with url"),
    ],
)
def test_anything_else_is_an_error_that_names_the_row(root: Path, value: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"row 5: .*{message}"):
        read(value, root)


def test_a_path_without_a_root_is_an_error() -> None:
    with pytest.raises(DataError, match="holds no such file"):
        read("a.png")


def test_a_huge_file_is_refused_without_reading_it(root: Path) -> None:
    with (root / "huge.png").open("wb") as handle:
        handle.truncate(2 * 10**9)  # takes no room on disk
    with pytest.raises(
        DataError, match=r"row 5: huge\.png: the image file is too large: 2,000,000,000 bytes"
    ):
        read("huge.png", root)


def test_huge_bytes_and_base64_are_refused(root: Path) -> None:
    huge = bytes(MAX_BYTES + 1)
    text = "A" * (MAX_BYTES // 3 * 4 + 8)
    for value in (huge, memoryview(huge), {"bytes": huge}, f"data:image/png;base64,{text}"):
        with pytest.raises(DataError, match="row 5: the image file is too large"):
            read(value, root)


def test_devices_and_pipes_are_never_read(root: Path) -> None:
    os.mkfifo(root / "pipe.png")
    for name in ("/dev/zero", "pipe.png"):
        with pytest.raises(DataError, match=f"row 5: {name} is a device or a pipe; expected a file"):
            read(name, root)


@pytest.mark.parametrize("mode", ["CMYK", "I", "F", "LAB", "YCbCr"])
def test_a_decoded_image_of_any_mode_keeps_its_pixels(mode: str) -> None:
    image = Image.new(mode, (3, 2), 7)
    again = Image.open(BytesIO(read(image)))
    assert (again.mode, again.tobytes()) == (mode, image.tobytes())
