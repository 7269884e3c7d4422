"""Pictures inside a page: small, bounded in pixels and bytes, as data URIs."""

import base64
from io import BytesIO

from PIL import Image

MAX_SIDE = 192
# Drawings stay exact as PNG; photographs are larger than this and become JPEG.
MAX_PNG_BYTES = 6_000


def data_uri(picture: Image.Image) -> str:
    """Return an RGB picture as a data URI; its longer side is at most `MAX_SIDE` pixels."""
    small = picture.copy()
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    data, kind = _encoded(small, "PNG"), "png"
    if len(data) > MAX_PNG_BYTES:
        data, kind = _encoded(small, "JPEG"), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _encoded(picture: Image.Image, format: str) -> bytes:
    buffer = BytesIO()
    # PNG has no quality and reads none.
    picture.save(buffer, format, quality=80, optimize=True)
    return buffer.getvalue()
