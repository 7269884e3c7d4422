"""Images on disk, stored once under the hash of their file bytes.

Pixels are checked when an image comes in, so that a damaged picture is named at preparation and not hours
later. Where image bytes come from is in image_values.py.
"""

import re
import struct
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from vlm_distill.data.image_formats import COMMON, formats
from vlm_distill.errors import DataError, one_line
from vlm_distill.files import atomic_path, refuse_pipe, sha256_bytes
from vlm_distill.records import Example

ImageLoader = Callable[[Example], list[Image.Image]]
"""Opens the pictures of an example, in the order of its image parts."""

MAX_PIXELS = 50_000_000
# That of Qwen2-VL's processor. A processor that scales the shorter side to S pixels makes S * S * ratio of
# them, whatever small number a narrow picture has.
MAX_RATIO = 200
_BITS_PER_SAMPLE = 258  # a tag of TIFF
# What Pillow's decoders raise on damaged data; OSError covers truncated and unidentified files.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    TypeError,
    KeyError,
    struct.error,
    zlib.error,
    # Of decoders in Python, for numbers that no writer makes.
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
)


class ImageStore:
    """Images under `root/ab/<sha256 of the file bytes>`, unchanged as they came.

    `max_pixels` bounds width times height; it is checked on the header, before pixels are decoded.
    A store that is not `is_kept` writes nothing: it only names and checks pictures.
    """

    def __init__(self, root: Path, *, max_pixels: int = MAX_PIXELS, is_kept: bool = True):
        self.root = root
        self.max_pixels = max_pixels
        self.is_kept = is_kept
        self._stored: set[str] = set()

    def path(self, image: str) -> Path:
        return self.root / image[:2] / image

    def __contains__(self, image: str) -> bool:
        return self.path(image).is_file()

    def add(self, data: bytes, where: str) -> str:
        """Store a picture and return its hash; a picture that is already stored is not written again.

        Raises:
            DataError: no complete, readable image of an accepted format, or one with too many pixels.
        """
        image = sha256_bytes(data)
        if image in self._stored:
            return image
        path = self.path(image)
        # A file of another size was damaged from outside and is replaced.
        if not path.is_file() or path.stat().st_size != len(data):
            decode_image(data, where=where, max_pixels=self.max_pixels)
            if self.is_kept:
                with atomic_path(path) as temporary:
                    temporary.write_bytes(data)
        self._stored.add(image)
        return image

    def load_images(self, example: Example) -> list[Image.Image]:
        """Return the pictures of an example, in the order of its image parts."""
        return [self.load(image) for image in example.images]

    def load(self, image: str) -> Image.Image:
        """Return the picture as RGB, upright as its EXIF orientation says, transparent parts on white.

        Raises:
            DataError: the file is missing or its content no longer has this hash.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", image):
            raise DataError(f"{self.root}: expected the sha256 of an image, got {image!r}")
        path = self.path(image)
        refuse_pipe(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{path}: the image cannot be read ({error.strerror}); prepare the data again"
            ) from None
        if sha256_bytes(data) != image:
            raise DataError(
                f"{path}: the image was changed after it was stored; delete it and prepare the data again"
            )
        return decode_image(data, where=str(path), max_pixels=self.max_pixels)


def decode_image(data: bytes, *, where: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the first frame of an image file as upright RGB on white.

    Grey of 16 bits is scaled to 8; wider integers and floating point have no known range.

    Raises:
        DataError: truncated, unreadable, of an unknown format or range, with more than `max_pixels`, or one
            side more than `MAX_RATIO` times the other.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(BytesIO(data), formats=formats())
            _require_size(picture, where=where, max_pixels=max_pixels)
            picture.load()
        # Some files hold pictures of other sizes than their headers name.
        _require_size(picture, where=where, max_pixels=max_pixels)
        _require_range(picture, where=where)
        return _upright_rgb(picture)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"{where}: the image is too large: expected at most {max_pixels} pixels") from None
    except UnidentifiedImageError:
        raise DataError(
            f"{where}: not an image ({len(data)} bytes); expected {', '.join(COMMON)} or another format that "
            "Pillow decodes by itself"
        ) from None
    except _DAMAGED as error:
        detail = one_line(error)
        raise DataError(f"{where}: the image is damaged or truncated: {detail}") from None


def _require_size(picture: Image.Image, *, where: str, max_pixels: int) -> None:
    width, height = picture.size
    if width * height > max_pixels:
        raise DataError(
            f"{where}: the image is too large: {width} x {height}, expected at most {max_pixels} pixels"
        )
    if min(width, height) < 1:
        raise DataError(f"{where}: the image has no pixels: {width} x {height}")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise DataError(
            f"{where}: the image is too narrow: {width} x {height}, expected one side to be at most "
            f"{MAX_RATIO} times the other; crop it"
        )


def _require_range(picture: Image.Image, *, where: str) -> None:
    # PNG and PPM files of 16 bits come as 32-bit integers from some versions of Pillow.
    is_wide = picture.mode == "I" and picture.format not in ("PNG", "PPM")
    tags = getattr(picture, "tag_v2", {})
    is_packed = picture.mode.startswith("I;16") and tags.get(_BITS_PER_SAMPLE, (16,)) != (16,)
    if is_wide or is_packed or picture.mode == "F":
        raise DataError(
            f"{where}: pixels of Pillow's mode {picture.mode!r} (floating point, signed, or not of 8 or 16 "
            "bits) have no known range; store the image with 8 or 16 bits"
        )


def _upright_rgb(picture: Image.Image) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        # 16 bits of grey: Pillow's own conversion would clip at 255 instead of scaling.
        picture = picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if "A" in picture.getbands() or "transparency" in picture.info:
        opaque = picture.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB")
    return picture.convert("RGB")
