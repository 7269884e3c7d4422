"""What a model's own processor makes of a prompt: the side of the judge, without any encoding of ours."""

import inspect
from collections.abc import Sequence
from typing import Any

from PIL import Image as Picture
from torch import Tensor

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.body import dtype_of
from vlm_distill.records import Example


def processed(loaded: LoadedModel, example: Example, pictures: Sequence[Picture.Image]) -> dict[str, Tensor]:
    """Return what the processor makes of a prompt and the model's forward names, token types included."""
    model: Any = loaded.model
    left = iter(pictures)
    reads_images = "vision" in loaded.adapter.parts
    chat = []
    for message in example.messages:
        turn: Any = message.as_chat()
        parts = [
            {**part, "image": next(left)} if part["type"] == "image" else part for part in turn["content"]
        ]
        # Templates of text models join `content` as a string.
        content = parts if reads_images else "".join(part["text"] for part in parts)
        chat.append({**turn, "content": content})
    made = loaded.processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    taken = set(inspect.signature(model.forward).parameters) - {"labels"}
    dtype = dtype_of(model)  # Not every class casts the float32 pixels of its processor.
    return {
        name: value.to(loaded.device, dtype) if value.is_floating_point() else value.to(loaded.device)
        for name, value in made.items()
        if name in taken
    }
