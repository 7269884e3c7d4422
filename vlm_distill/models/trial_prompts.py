"""A plain prompt and one with a picture, on which it is tried what a model does with them."""

from PIL import Image as Picture

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.batches import PromptBatch
from vlm_distill.errors import AdapterError
from vlm_distill.records import Example, Image, Message, Text

PLAIN = Example(id="hello", messages=(Message(role="user", content=(Text(text="Hello"),)),))
SEEN = Example(id="seen", messages=(Message(role="user", content=(Image(), Text(text="Hello"))),))


def trial_prompts(loaded: LoadedModel) -> dict[str, PromptBatch]:
    """Return what a model has to read, by what it is; no weights are needed, and none are cached.

    Some families read no prompt without a picture.

    Raises:
        AdapterError: it can encode neither, or no picture although it is of a family that reads them.
    """
    picture = Picture.new("RGB", (64, 64), "white")
    seen = {"a prompt with an image": _encoded(loaded, SEEN, picture)} if loaded.image_token_ids else {}
    try:
        plain = {"a plain prompt": _encoded(loaded, PLAIN)}
    except AdapterError:
        if not seen:
            raise
        plain = {}
    return plain | seen


def _encoded(loaded: LoadedModel, example: Example, *pictures: Picture.Image) -> PromptBatch:
    return loaded.adapter.encode(loaded.processor, [example], [pictures])
