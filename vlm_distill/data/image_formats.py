"""Which formats of pictures are read: what Pillow decodes by itself, within bounds."""

from functools import cache

from PIL import Image

# An EPS runs Ghostscript, and an IPTC file is opened once more without a list of formats; a FITS file may be
# compressed without bounds; the others are recognised and then need a program or library of somebody else.
_LEFT_OUT = {"EPS", "IPTC", "FITS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF", "FPX", "MIC"}
COMMON = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that are named in error lines."""


@cache
def formats() -> tuple[str, ...]:
    """Return the formats that are read, by their names in Pillow."""
    Image.init()
    with_suffix = set(Image.registered_extensions().values())
    return tuple(sorted(with_suffix.intersection(Image.OPEN) - _LEFT_OUT))


@cache
def suffixes() -> frozenset[str]:
    """Return the suffixes of picture files, in lower case."""
    # Files of several pictures from one camera are JPEG files.
    readable = {*formats(), "MPO"}
    return frozenset(suffix for suffix, format in Image.registered_extensions().items() if format in readable)
