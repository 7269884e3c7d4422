"""Pictures and tables on disk that the data tests share."""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_distill.data.images import ImageStore


def picture_bytes(shade: int = 0, *, size: tuple[int, int] = (4, 3), format: str = "PNG") -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, (shade, 20, 30)).save(buffer, format=format)
    return buffer.getvalue()


@pytest.fixture
def picture() -> Callable[..., bytes]:
    return picture_bytes


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[[str, list[Any]], Path]:
    def write(name: str, rows: list[Any]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def questions(tmp_path: Path, write_jsonl: Callable[[str, list[Any]], Path]) -> Path:
    """Twelve questions about four pictures: three each."""
    for shade in range(4):
        path = tmp_path / "images" / f"{shade}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture_bytes(shade))
    rows = [
        {
            "n": n,
            "file": f"images/{n // 3}.png",
            "q": f"question {n}?",
            "a": "yes" if n % 3 else "red",
            "type": f"t{n % 2}",
        }
        for n in range(12)
    ]
    return write_jsonl("questions.jsonl", rows)
