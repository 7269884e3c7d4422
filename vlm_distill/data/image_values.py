"""From what stands in an image column to the bytes of an image file. Pixels are decoded in images.py."""

import base64
import binascii
import os.path
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_distill.errors import DataError

# The first characters of JPEG, PNG, GIF and WebP files in base64. A path that begins so has a dot somewhere.
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")


def image_bytes(value: Any, *, root: Path | None, where: str) -> bytes:
    """Return the file bytes that a cell of an image column means.

    Accepted are bytes, a path (relative ones below `root`), base64 text or a data: URL, the {"bytes", "path"}
    record of Hugging Face data sets, and a decoded Pillow image, which is encoded as PNG.

    Raises:
        DataError: none of these, a file that cannot be read, or a relative path that leaves `root`.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, Image.Image):
        buffer = BytesIO()
        value.save(buffer, format="PNG")
        return buffer.getvalue()
    if isinstance(value, dict) and value.get("bytes") is not None:
        return image_bytes(value["bytes"], root=root, where=where)
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        return _read(value["path"], root=root, where=where)
    if isinstance(value, str):
        return _from_text(value, root=root, where=where)
    found = f"a record with {', '.join(map(str, value))}" if isinstance(value, dict) else type(value).__name__
    raise DataError(f"{where}: expected an image (bytes, a path, base64 or {{bytes, path}}), got {found}")


def _from_text(text: str, *, root: Path | None, where: str) -> bytes:
    if text.startswith("data:"):
        header, _, body = text.partition(",")
        if not header.endswith(";base64"):
            raise DataError(f"{where}: expected a data: URL in base64, got {header[:60]!r}")
        return _decode_base64(body, where=where)
    if text.startswith(_BASE64_STARTS) and "." not in text:
        return _decode_base64(text, where=where)
    return _read(text, root=root, where=where)


def _decode_base64(text: str, *, where: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise DataError(f"{where}: the image is not valid base64: {error}") from None


def _read(name: str, *, root: Path | None, where: str) -> bytes:
    shown = name if len(name) <= 120 else name[:117] + "..."
    if "://" in name:
        raise DataError(
            f"{where}: {shown} is a URL; images are not downloaded: store the files and name their paths"
        )
    path = Path(name)
    if not path.is_absolute():
        if root is None:
            raise DataError(
                f"{where}: {shown} is a path, but this data set holds no such file; expected image bytes"
            )
        path = inside(root, name, where=where)
    try:
        if path.is_file():
            return path.read_bytes()
    except OSError as error:
        raise DataError(f"{where}: {shown} cannot be read: {error.strerror}") from None
    raise DataError(
        f"{where}: no image file at {path}; set image_root if paths are relative to another folder"
    )


def inside(root: Path, name: str, *, where: str) -> Path:
    """Return `root / name` for a relative name that stays below `root`; links in `root` are followed."""
    clean = os.path.normpath(name)
    if os.path.isabs(clean) or clean.split(os.sep)[0] == "..":
        raise DataError(f"{where}: {name!r} leaves {root}; expected a path below it")
    return root / clean
