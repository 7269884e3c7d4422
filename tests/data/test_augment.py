import pytest
from PIL import Image

from vlm_distill.config import decode
from vlm_distill.data.augment import Augment
from vlm_distill.errors import ConfigError


def picture() -> Image.Image:
    image = Image.new("RGB", (6, 4))
    image.putdata([(number, 0, 0) for number in range(24)])
    return image


def reds(image: Image.Image) -> list[int]:
    return list(image.getchannel("R").tobytes())


def test_nothing_changes_by_default() -> None:
    assert [reds(Augment()(picture(), seed=seed)) for seed in range(5)] == [list(range(24))] * 5


def test_a_change_is_a_function_of_the_seed_and_keeps_every_pixel() -> None:
    augment = Augment(flip=True, transpose=True, shift=2)
    changed = [augment(picture(), seed=seed) for seed in range(40)]
    assert [reds(image) for image in changed] == [reds(augment(picture(), seed=seed)) for seed in range(40)]
    assert {image.size for image in changed} == {(6, 4), (4, 6)}
    assert all(sorted(reds(image)) == list(range(24)) for image in changed)
    assert len({tuple(reds(image)) for image in changed}) > 20


def test_flips_alone_give_four_pictures() -> None:
    assert len({tuple(reds(Augment(flip=True)(picture(), seed=seed))) for seed in range(40)}) == 4


def test_a_negative_shift_is_refused() -> None:
    with pytest.raises(ConfigError, match="shift: input should be greater than or equal to 0"):
        decode(Augment, {"shift": -1}, where="x.yaml")
