"""How many pixels an image processor may make of a picture: settings and picture are a stranger's.

Bounded are the sizes that its settings name. A processor that scales the shorter side makes more of a narrow
picture than of a square one.
"""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from vlm_distill.errors import AdapterError

# 800 MB in three colours of four bytes; five times what Qwen2-VL takes at most.
_MAX_PIXELS = 1 << 26
_SIZES = (("size", "do_resize"), ("crop_size", "do_center_crop"), ("pad_size", "do_pad"))


def require_few_pixels(processor: Any, pictures: Sequence[Image.Image]) -> None:
    """Refuse a picture of which the processor would make more pixels than memory is there for.

    Raises:
        AdapterError: more than 67 million.
    """
    images = getattr(processor, "image_processor", None)
    sizes = [getattr(images, name, None) for name, switch in _SIZES if getattr(images, switch, None)]
    for picture in pictures:
        ratio = max(picture.size) / min(picture.size)
        made = max(
            (_num_pixels(size, ratio, are_areas=hasattr(images, "merge_size")) for size in sizes), default=0
        )
        if made > _MAX_PIXELS:
            width, height = picture.size
            raise AdapterError(
                f"its processor makes {made:.3g} pixels of a picture of {width} x {height}, expected at most "
                f"{_MAX_PIXELS:,}; crop the picture, or lower the sizes in the processor's settings"
            )


def _num_pixels(size: Any, ratio: float, *, are_areas: bool) -> float:
    keys = ("height", "width", "max_height", "max_width", "shortest_edge", "longest_edge")
    height, width, max_height, max_width, shortest, longest = (getattr(size, key, None) or 0 for key in keys)
    # Families that merge patches have numbers of pixels there, and reach the larger one with large pictures.
    if are_areas:
        edges = [shortest]
    else:
        edges = [one for one in (shortest * shortest * ratio, longest * longest) if one]
    return float(max(height * width, max_height * max_width, min(edges, default=0)))
