"""A processor makes no more pixels of a picture than memory is there for, whatever its settings ask."""

from types import SimpleNamespace

import pytest
from PIL import Image

from vlm_distill.adapters.pixel_bounds import require_few_pixels
from vlm_distill.errors import AdapterError

SWITCHES = {"size": "do_resize", "crop_size": "do_center_crop", "pad_size": "do_pad"}


def processor(name: str, size: dict[str, int], **more: object) -> SimpleNamespace:
    settings = {name: SimpleNamespace(**size), SWITCHES[name]: True, **more}
    return SimpleNamespace(image_processor=SimpleNamespace(**settings))


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize(
    "size",
    [
        {"height": 10**9, "width": 10**9},
        {"shortest_edge": 1024},
        {"longest_edge": 10**5},
        {"max_height": 10**5, "max_width": 10**5},
    ],
)
def test_more_pixels_than_memory_holds_are_refused(name: str, size: dict[str, int]) -> None:
    with pytest.raises(AdapterError, match="its processor makes"):
        require_few_pixels(processor(name, size), [Image.new("RGB", (2000, 10))])


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
