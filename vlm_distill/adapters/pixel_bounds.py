"""How many pixels an image processor may make of a picture: settings and picture are a stranger's.

Bounded are the sizes that its settings name, and the tiles or patches that it takes a picture apart into. A
processor that scales the shorter side makes more of a narrow picture than of a square one.
"""

import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

from vlm_distill.errors import AdapterError

# 800 MB in three colours of four bytes; five times what Qwen2-VL takes at most.
_MAX_PIXELS = 1 << 26
_SIZES = (("size", "do_resize"), ("crop_size", "do_center_crop"), ("pad_size", "do_pad"))
# All ways to lay tiles out are tried; no known model has more than 36.
_MAX_TILES = 1 << 10
# What is counted, the side of one, and how many there may be.
_TILES = (
    ("max_patches", "size", _MAX_TILES),
    ("max_image_tiles", "size", _MAX_TILES),
    ("max_crops", "size", _MAX_TILES),
    ("max_num_tiles", "tile_size", _MAX_TILES),
    ("max_tiles", "tile_size", _MAX_TILES),
    ("max_slice_nums", "scale_resolution", _MAX_TILES),
    ("max_num_patches", "patch_size", _MAX_PIXELS),
    ("min_num_patches", "patch_size", _MAX_PIXELS),
)


def require_few_pixels(processor: Any, pictures: Sequence[Image.Image]) -> None:
    """Refuse a picture of which the processor would make more pixels than memory is there for.

    Raises:
        AdapterError: more than 67 million, or more than 1,024 tiles.
    """
    images = getattr(processor, "image_processor", None)
    tiled = _num_tiled_pixels(images) if pictures else 0
    switched_on = [getattr(images, name, None) for name, switch in _SIZES if getattr(images, switch, None)]
    sizes = [size for size in switched_on if size is not None]
    for picture in pictures:
        ratio = max(picture.size) / min(picture.size)
        are_areas = hasattr(images, "merge_size")
        made = max([tiled, *(_num_pixels(size, ratio, are_areas=are_areas) for size in sizes)])
        if made > _MAX_PIXELS:
            width, height = picture.size
            raise AdapterError(
                f"its processor makes {made:.3g} pixels of a picture of {width} x {height}, expected at most "
                f"{_MAX_PIXELS:,}; crop the picture, or lower the sizes in the processor's settings"
            )


def _num_pixels(size: Any, ratio: float, *, are_areas: bool) -> float:
    keys = ("height", "width", "max_height", "max_width", "shortest_edge", "longest_edge", "max_pixels")
    height, width, max_height, max_width, shortest, longest, area = (dict(size).get(key) or 0 for key in keys)
    # Families that merge patches have numbers of pixels there, and reach the larger one with large pictures.
    if are_areas:
        edges = [shortest]
    else:
        edges = [one for one in (shortest * shortest * ratio, longest * longest) if one]
    return float(max(height * width, max_height * max_width, area, min(edges, default=0)))


def _num_tiled_pixels(images: Any) -> float:
    """Return the pixels of all tiles or patches of a picture, at most."""
    areas = [0.0, *(height * width for height, width in getattr(images, "image_grid_pinpoints", None) or ())]
    for name, side_name, most in _TILES:
        count, side = getattr(images, name, None), getattr(images, side_name, None)
        if count is None or side is None:
            continue
        sides = (
            (side, side) if isinstance(side, int) else (dict(side).get(key) for key in ("height", "width"))
        )
        # What is counted by the name of tiles and has no such side are patches, whose sum is bounded above.
        area = math.prod(one or 0 for one in sides)
        if area and count > most:
            raise AdapterError(
                f"its processor makes up to {count:,} tiles of a picture, expected at most {most:,}; "
                f"lower `{name}` in the processor's settings"
            )
        areas.append(count * area)
    return float(max(areas))
