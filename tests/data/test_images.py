import hashlib
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm_distill.data.images import ImageStore, decode_image
from vlm_distill.errors import DataError


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def noise(size: tuple[int, int] = (16, 16)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_an_image_lies_unchanged_under_the_hash_of_its_bytes(
    store: ImageStore, picture: Callable[..., bytes]
) -> None:
    data = picture()
    image = store.add(data, "row 0")
    assert image == hashlib.sha256(data).hexdigest()
    assert (store.root / image[:2] / image).read_bytes() == data
    assert image in store


def test_adding_twice_writes_once(store: ImageStore, picture: Callable[..., bytes]) -> None:
    image = store.add(picture(), "row 0")
    before = store.path(image).stat().st_mtime_ns
    assert store.add(picture(), "row 1") == image
    assert ImageStore(store.root).add(picture(), "row 2") == image
    assert store.path(image).stat().st_mtime_ns == before
    assert [path for path in store.root.rglob("*") if path.is_file()] == [store.path(image)]


def test_a_cut_off_file_in_the_store_is_replaced(store: ImageStore, picture: Callable[..., bytes]) -> None:
    image = store.add(picture(), "row 0")
    store.path(image).write_bytes(picture()[:20])
    ImageStore(store.root).add(picture(), "row 0")
    assert store.load(image).size == (4, 3)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_image_is_an_error_that_names_the_row(store: ImageStore, format: str) -> None:
    data = encoded(noise(), format)
    store.add(data, "row 6")
    with pytest.raises(DataError, match="row 7: "):
        store.add(data[: len(data) // 2], "row 7")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_random_damage_raises_nothing_but_data_errors(format: str) -> None:
    draw = np.random.default_rng(1)
    data = np.frombuffer(encoded(noise(), format), dtype=np.uint8)
    for _ in range(60):
        damaged = data.copy()
        damaged[draw.integers(0, len(data), 3)] = draw.integers(0, 256, 3)
        with suppress(DataError):
            picture = decode_image(damaged.tobytes(), where="row 1", max_pixels=10_000)
            assert picture.mode == "RGB"


def test_text_is_no_image(store: ImageStore) -> None:
    with pytest.raises(DataError, match=r"row 3: not an image \(5 bytes\)"):
        store.add(b"hello", "row 3")
    assert not list(store.root.rglob("*"))


def test_postscript_is_refused_before_an_interpreter_runs(store: ImageStore) -> None:
    with pytest.raises(DataError, match="not an image"):
        store.add(encoded(noise(), "EPS"), "row 0")


def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    store = ImageStore(tmp_path, max_pixels=100)
    data = picture(size=(11, 10))
    with pytest.raises(DataError, match="too large: 11 x 10, expected at most 100 pixels"):
        store.add(data[:60], "row 0")  # only the header: decoding would say "truncated"
    assert store.add(picture(size=(10, 10)), "row 0")


def test_a_decompression_bomb_is_an_error_of_the_user(store: ImageStore) -> None:
    bomb = bytearray(encoded(Image.new("1", (1, 1)), "BMP"))
    bomb[18:26] = (100_000).to_bytes(4, "little") * 2
    with pytest.raises(DataError, match="row 0: the image is too large"):
        store.add(bytes(bomb), "row 0")


def test_pixels_survive_the_store(store: ImageStore) -> None:
    image = store.load(store.add(encoded(noise(), "PNG"), "row 0"))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(noise()))


def test_transparent_parts_become_white(store: ImageStore) -> None:
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (255, 0, 0, 255))
    image = store.load(store.add(encoded(clear, "PNG"), "row 0"))
    assert [image.getpixel((0, 0)), image.getpixel((1, 0))] == [(255, 255, 255), (255, 0, 0)]


def test_a_transparent_palette_colour_becomes_white(store: ImageStore) -> None:
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([10, 20, 30])
    image = store.load(store.add(encoded(palette, "PNG", transparency=0), "row 0"))
    assert image.getpixel((0, 0)) == (255, 255, 255)


def test_images_stand_upright_as_exif_says(store: ImageStore) -> None:
    lying = Image.new("RGB", (4, 2), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    image = store.load(store.add(encoded(lying, "JPEG", exif=exif), "row 0"))
    assert image.size == (2, 4)


def test_sixteen_bit_grey_is_scaled_and_not_clipped(store: ImageStore) -> None:
    grey = Image.fromarray(np.full((2, 2), 0x8000, dtype=np.uint16))
    image = store.load(store.add(encoded(grey, "PNG"), "row 0"))
    assert image.getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(
    "values",
    [
        np.full((2, 2), 70_000, dtype=np.int32),
        np.full((2, 2), -1, dtype=np.int32),
        np.ones((2, 2), np.float32),
    ],
)
def test_pixels_of_an_unknown_range_are_refused_and_not_clipped(
    store: ImageStore, values: np.ndarray
) -> None:
    with pytest.raises(DataError, match=r"row 4: .* have no known range; store the image with 8 or 16 bits"):
        store.add(encoded(Image.fromarray(values), "TIFF"), "row 4")


def test_sixteen_bit_grey_of_all_formats_is_scaled(store: ImageStore) -> None:
    grey = Image.fromarray(np.full((2, 2), 0x8000, dtype=np.uint16))
    for format in ("TIFF", "JPEG2000", "PPM"):
        image = store.load(store.add(encoded(grey, format), "row 0"))
        assert image.getpixel((0, 0)) == (128, 128, 128), format


@pytest.mark.parametrize("size", [(1, 201), (201, 1), (1, 5_000_000)])
def test_a_narrow_picture_is_refused_before_a_processor_makes_it_huge(
    store: ImageStore, size: tuple[int, int]
) -> None:
    with pytest.raises(DataError, match=f"row 2: the image is too narrow: {size[0]} x {size[1]}"):
        store.add(encoded(Image.new("1", size), "PNG"), "row 2")
    assert store.add(encoded(Image.new("1", (1, 200)), "PNG"), "row 3")


@pytest.mark.filterwarnings("ignore:Image was not the expected size")
def test_an_icon_with_a_larger_picture_than_it_says_is_bounded_too() -> None:
    icon = bytearray(encoded(noise((64, 64)), "ICO", sizes=[(64, 64)]))
    icon[6:8] = 8, 8  # the size in the directory
    assert decode_image(bytes(icon), where="row 0").size == (64, 64)
    with pytest.raises(DataError, match="row 0: the image is too large: 64 x 64"):
        decode_image(bytes(icon), where="row 0", max_pixels=100)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_pictures_of_all_modes_become_rgb(store: ImageStore, mode: str) -> None:
    image = store.load(store.add(encoded(noise().convert("RGB").convert(mode), "TIFF"), "row 0"))
    assert (image.mode, image.size) == ("RGB", (16, 16))


@pytest.mark.parametrize("size", [(0, 0), (0, 7), (7, 0)])
def test_a_picture_without_pixels_is_refused(size: tuple[int, int]) -> None:
    header = bytearray(encoded(Image.new("RGB", (4, 4)), "TGA"))
    header[12:16] = size[0].to_bytes(2, "little") + size[1].to_bytes(2, "little")
    with pytest.raises(DataError, match="row 1: "):
        decode_image(bytes(header), where="row 1")


def test_of_an_animation_the_first_frame_is_taken(store: ImageStore) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    for format in ("GIF", "PNG", "WEBP"):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
        assert store.load(store.add(data, "row 0")).getpixel((1, 1)) == (255, 0, 0), format


def test_a_missing_image_is_an_error_that_names_the_file(store: ImageStore) -> None:
    with pytest.raises(DataError, match=r"aa/a{64}: the image cannot be read"):
        store.load("a" * 64)


def test_a_changed_image_is_an_error_that_names_the_file(
    store: ImageStore, picture: Callable[..., bytes]
) -> None:
    image = store.add(picture(1), "row 0")
    store.path(image).write_bytes(picture(2))
    with pytest.raises(DataError, match=f"{image}: the image was changed"):
        store.load(image)


def test_a_path_is_no_image_hash(store: ImageStore) -> None:
    with pytest.raises(DataError, match="expected the sha256"):
        store.load("../../etc/passwd")
