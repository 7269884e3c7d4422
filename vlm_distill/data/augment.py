"""Label-preserving changes of training images: flips, transposition and small shifts."""

import random

from PIL import Image, ImageChops
from pydantic import Field

from vlm_distill.config import Record


class Augment(Record):
    """Which changes are drawn. Only for questions whose answer they keep; none by default.

    `flip` mirrors left-right and upside-down, `transpose` swaps the axes, `shift` rolls by up to that many
    pixels on both axes.
    """

    flip: bool = False
    transpose: bool = False
    shift: int = Field(default=0, ge=0, le=10**6)

    def __call__(self, image: Image.Image, *, seed: int) -> Image.Image:
        """Return a changed copy that is a function of `seed`."""
        draw = random.Random(seed)
        if self.flip and draw.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.flip and draw.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        if self.transpose and draw.random() < 0.5:
            image = image.transpose(Image.Transpose.TRANSPOSE)
        if self.shift:
            image = ImageChops.offset(
                image, draw.randint(-self.shift, self.shift), draw.randint(-self.shift, self.shift)
            )
        return image
