"""What is on disk: examples and responses, joined by id. Tensors are in batches.py, files in data/.

An example is a prompt with its images and, where labels exist, references. A response is what a teacher, a
student or a reference answered to it. Nothing is ever joined by position or by prompt text.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

from vlm_distill.files import hash_json

Role = Literal["system", "user", "assistant"]
Author = Literal["teacher", "student", "reference"]
Finish = Literal["stop", "length", "aborted"]
AUTHORS: tuple[Author, ...] = get_args(Author)


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A run of text inside a message."""

    text: str
    type: Literal["text"] = "text"


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """The place of the next image of the example inside a message."""

    type: Literal["image"] = "image"


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn of a conversation, in the content-part form that Hugging Face chat templates read."""

    role: Role
    content: tuple[Text | Image, ...]

    def as_chat(self) -> dict[str, object]:
        """Return the turn as a chat template expects it."""
        parts = [
            {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": "image"}
            for part in self.content
        ]
        return {"role": self.role, "content": parts}


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A prompt.

    `images` are content hashes in the image store, in the order of the `Image` parts of `messages`.
    `references` are acceptable answers, empty where no labels exist. `meta` holds small extra columns that an
    evaluation groups by (question type, category); training never reads it.
    """

    id: str
    messages: tuple[Message, ...]
    images: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    meta: dict[str, str] = field(default_factory=dict)

    def prompt_hash(self) -> str:
        """Return the hash of everything that a model sees: messages and images, not id or references."""
        return hash_json([[message.as_chat() for message in self.messages], self.images])


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """An answer to an example.

    `token_ids` are the ids that were generated, the stop token included where one ended the response; they
    are trained on as they are. `prompt_ids_hash` is the hash of the prompt ids that generation saw,
    `sampling` the hash of the sampling settings. `reencoded` marks responses whose ids were made from text,
    because a server returned none or a human wrote them.
    """

    id: str
    example_id: str
    author: Author
    round: int
    sample_index: int
    text: str
    token_ids: tuple[int, ...]
    finish: Finish
    model_fingerprint: str
    prompt_ids_hash: str = ""
    sampling: str = ""
    token_log_probs: tuple[float, ...] | None = None
    reencoded: bool = False


def response_id(example_id: str, author: Author, *, round: int, sample_index: int) -> str:
    """Return the id under which the `sample_index`-th response of `author` in `round` is stored."""
    return hash_json([example_id, author, round, sample_index])[:32]
