import base64
import hashlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_distill.data.image_values import image_bytes
from vlm_distill.errors import DataError


@pytest.fixture
def root(tmp_path: Path, picture: Callable[..., bytes]) -> Path:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "a.png").write_bytes(picture())
    (tmp_path / "secret.png").write_bytes(picture(9))
    return tmp_path / "data"


def read(value: Any, root: Path | None = None) -> bytes:
    return image_bytes(value, root=root, where="row 5")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP"])
def test_base64_of_common_formats_is_recognised(picture: Callable[..., bytes], format: str) -> None:
    data = picture(format=format)
    text = base64.b64encode(data).decode()
    assert read(text) == data
    assert read(f"data:image/{format.lower()};base64,{text}") == data


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
