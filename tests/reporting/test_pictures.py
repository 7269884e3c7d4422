import base64
from io import BytesIO

import numpy as np
from PIL import Image

from tests.tiny import picture
from vlm_distill.reporting.pictures import MAX_SIDE, data_uri


def decoded(uri: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_a_small_drawing_is_kept_exactly() -> None:
    original = picture("teal")
    uri = data_uri(original)
    assert uri.startswith("data:image/png;base64,")
    assert np.array_equal(np.asarray(decoded(uri).convert("RGB")), np.asarray(original))


def test_a_photograph_becomes_small_in_pixels_and_bytes() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    photograph = Image.fromarray(noise)
    uri = data_uri(photograph)
    assert uri.startswith("data:image/jpeg;base64,")
    assert decoded(uri).size == (MAX_SIDE, MAX_SIDE * 3 // 4)
    assert len(uri) < 40_000
    assert photograph.size == (1200, 900)
