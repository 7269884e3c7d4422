"""From what stands in an image column to the bytes of an image file. Pixels are decoded in images.py."""

import base64
import os.path
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_distill.data.image_formats import suffixes
from vlm_distill.errors import DataError, cut, one_line, shown

# The first characters of JPEG, PNG, GIF, WebP and TIFF files in base64. A path that begins so has a dot
# somewhere.
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkqA", "TU0AK")
MAX_BYTES = 200_000_000
"""Of a picture file: four bytes for each of the pixels that a picture may have (images.py)."""
_LONGEST_SUFFIX = 20
# Pictures of other modes are handed over as TIFF, which has them all.
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def image_bytes(value: Any, *, root: Path | None, where: str) -> bytes:
    """Return the file bytes that a cell of an image column means.

    Accepted are bytes, a path (relative ones below `root`), base64 text or a data: URL, the {"bytes", "path"}
    record of Hugging Face data sets, and a decoded Pillow image, which is encoded as PNG.

    Raises:
        DataError: none of these, a file that cannot be read, more than `MAX_BYTES` of it, or a relative path
            that leaves `root`.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        _require_bytes(len(value), where=where)
        return bytes(value)
    if isinstance(value, Image.Image):
        return _encoded(value, where=where)
    if isinstance(value, dict) and value.get("bytes") is not None:
        return image_bytes(value["bytes"], root=root, where=where)
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        return _read(value["path"], root=root, where=where)
    if isinstance(value, str):
        return _from_text(value, root=root, where=where)
    found = f"a record with {', '.join(map(str, value))}" if isinstance(value, dict) else type(value).__name__
    raise DataError(f"{where}: expected an image (bytes, a path, base64 or {{bytes, path}}), got {found}")


def image_file(value: Any, *, root: Path | None) -> Path | None:
    """Return the file that a cell of an image column names; None where it holds the bytes themselves."""
    if isinstance(value, dict) and value.get("bytes") is None:
        value = value.get("path")
    if not isinstance(value, str) or _is_data_url(value) or "\0" in value:
        return None
    if value.startswith(_BASE64_STARTS) and "." not in value:
        return None
    return Path(value) if root is None else root / value


def may_be_image(value: Any) -> bool:
    """Return whether a cell looks like an image or a list of them."""
    if isinstance(value, (list, tuple)):
        return any(map(may_be_image, value))
    if isinstance(value, dict):
        return value.get("bytes") is not None or may_be_image(value.get("path"))
    if isinstance(value, str):
        return _is_data_url(value) or value.startswith(_BASE64_STARTS) or _has_suffix(value)
    return isinstance(value, (bytes, Image.Image))


def _has_suffix(name: str) -> bool:
    return os.path.splitext(name[-_LONGEST_SUFFIX:])[1].lower() in suffixes()


def _require_bytes(size: int, *, where: str) -> None:
    if size > MAX_BYTES:
        raise DataError(
            f"{where}: the image file is too large: {size:,} bytes, expected at most {MAX_BYTES:,}"
        )


def _encoded(picture: Image.Image, *, where: str) -> bytes:
    buffer = BytesIO()
    try:
        picture.save(buffer, format="PNG" if picture.mode in _PNG_MODES else "TIFF")
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{where}: the image cannot be encoded: {one_line(error)}") from None
    return buffer.getvalue()


def _from_text(text: str, *, root: Path | None, where: str) -> bytes:
    if _is_data_url(text):
        header, _, body = text.partition(",")
        if not header.lower().endswith(";base64"):
            raise DataError(f"{where}: expected a data: URL in base64, got {shown(header)}")
        return _decode_base64(body, where=where)
    if text.startswith(_BASE64_STARTS) and "." not in text:
        return _decode_base64(text, where=where)
    return _read(text, root=root, where=where)


def _is_data_url(text: str) -> bool:
    return text[:5].lower() == "data:"


def _decode_base64(text: str, *, where: str) -> bytes:
    # Four characters hold three bytes.
    _require_bytes(len(text) * 3 // 4, where=where)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    # Characters beyond ASCII are another ValueError.
    except ValueError as error:
        raise DataError(f"{where}: the image is not valid base64: {one_line(error)}") from None


def _read(name: str, *, root: Path | None, where: str) -> bytes:
    named = cut(name, 120)
    if "://" in name:
        raise DataError(
            f"{where}: {named} is a URL; images are not downloaded: store the files and name their paths"
        )
    path = Path(name)
    if not path.is_absolute():
        if root is None:
            raise DataError(
                f"{where}: {named} is a path, but this data set holds no such file; expected image bytes"
            )
        path = inside(root, name, where=where)
    try:
        # A device or a pipe has no end.
        if path.is_file():
            size = path.stat().st_size
            _require_bytes(size, where=f"{where}: {named}")
            with path.open("rb") as handle:
                data = handle.read(size + 1)
            if len(data) > size:  # such as those of the system
                raise DataError(f"{where}: {named} has more bytes than its size says; expected a plain file")
            return data
    except OSError as error:
        raise DataError(f"{where}: {named} cannot be read: {error.strerror}") from None
    if path.exists() and not path.is_dir():
        raise DataError(f"{where}: {named} is a device or a pipe; expected a file")
    raise DataError(
        f"{where}: no image file at {path}; set image_root if paths are relative to another folder"
    )


def inside(root: Path, name: str, *, where: str) -> Path:
    """Return `root / name` for a relative name that stays below `root`; links in `root` are followed."""
    clean = os.path.normpath(name)
    if os.path.isabs(clean) or clean.split(os.sep)[0] == "..":
        raise DataError(f"{where}: {name!r} leaves {root}; expected a path below it")
    return root / clean
