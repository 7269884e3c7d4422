"""A processor makes no more pixels of a picture than memory is there for, whatever its settings ask."""

from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from transformers import (
    GotOcr2ImageProcessor,
    LlavaNextImageProcessor,
    NemotronH_Omni_Reasoning_V3ImageProcessor,
    PerceptionLMImageProcessor,
    VideoLlavaImageProcessor,
)

from tests.families import llava_like, llava_own_parts
from tests.families.build import Build
from vlm_distill.adapters.pixel_bounds import require_few_pixels
from vlm_distill.errors import AdapterError

SWITCHES = {"size": "do_resize", "crop_size": "do_center_crop", "pad_size": "do_pad"}


def processor(name: str, size: dict[str, int], **more: object) -> SimpleNamespace:
    settings = {name: size, SWITCHES[name]: True, **more}
    return SimpleNamespace(image_processor=SimpleNamespace(**settings))


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize(
    "size",
    [
        {"height": 10**9, "width": 10**9},
        {"shortest_edge": 1024},
        {"longest_edge": 10**5},
        {"max_height": 10**5, "max_width": 10**5},
        {"min_pixels": 1, "max_pixels": 10**9},
    ],
)
def test_more_pixels_than_memory_holds_are_refused(name: str, size: dict[str, int]) -> None:
    with pytest.raises(AdapterError, match="its processor makes"):
        require_few_pixels(processor(name, size), [Image.new("RGB", (2000, 10))])


@pytest.mark.parametrize(
    ("images", "what"),
    [
        (LlavaNextImageProcessor(image_grid_pinpoints=[[336, 672], [10**5, 10**5]]), "1e.10 pixels"),
        (GotOcr2ImageProcessor(max_patches=10**5), "100,000 tiles"),
        (GotOcr2ImageProcessor(size={"height": 4096, "width": 4096}, max_patches=12), "2.01e.08 pixels"),
        (PerceptionLMImageProcessor(tile_size=10**5), "3.6e.11 pixels"),
        (NemotronH_Omni_Reasoning_V3ImageProcessor(min_num_patches=10**7), "2.56e.09 pixels"),
        (VideoLlavaImageProcessor(size={"height": 10**5, "width": 10**5}), "1e.10 pixels"),
    ],
)
def test_more_tiles_than_memory_holds_are_refused(images: Any, what: str) -> None:
    with pytest.raises(AdapterError, match=rf"its processor makes (up to )?{what} of a picture"):
        require_few_pixels(SimpleNamespace(image_processor=images), [Image.new("RGB", (20, 10))])


@pytest.mark.parametrize("family", [*llava_like.FAMILIES.values(), *llava_own_parts.FAMILIES.values()])
def test_image_processors_as_they_come_are_taken(family: Build) -> None:
    own = getattr(family()[1], "image_processor", None)
    assert not is_refused(SimpleNamespace(image_processor=own and type(own)()))


@pytest.mark.parametrize(
    "known",
    [
        SimpleNamespace(),
        processor("size", {"shortest_edge": 336}),
        processor("size", {"shortest_edge": 800, "longest_edge": 1333}),
        processor("size", {"longest_edge": 2048}),
        processor("size", {"shortest_edge": 3136, "longest_edge": 12_845_056}, merge_size=2),
        processor("size", {"height": 10**9, "width": 10**9}, do_resize=False),
    ],
)
def test_processors_of_known_models_take_narrow_pictures(known: SimpleNamespace) -> None:
    assert not is_refused(known)


def is_refused(processor: SimpleNamespace) -> bool:
    try:
        require_few_pixels(processor, [Image.new("RGB", (2000, 10))])
    except AdapterError:
        return True
    return False
