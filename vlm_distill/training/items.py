"""What a training step reads: items, their deterministic order, and their collation into tensors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.batches import PromptBatch, ResponseBatch, pad_responses
from vlm_distill.data.store import join
from vlm_distill.data.teacher_cache import CacheReader
from vlm_distill.errors import DataError
from vlm_distill.records import AUTHORS, Author, Example, Response

ImageLoader = Callable[[Example], list[Image.Image]]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainItem:
    """A prompt with the responses that are trained on it, in the order of records.AUTHORS."""

    example: Example
    responses: tuple[Response, ...]

    @property
    def num_tokens(self) -> int:
        return sum(len(response.token_ids) for response in self.responses)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainBatch:
    """A micro-batch: one prompt encoding per model, one response batch for both.

    `cached` is what a cache holds of the teacher (data/teacher_cache.py), which then gets no prompts.
    """

    student_prompts: PromptBatch
    teacher_prompts: PromptBatch | None
    responses: ResponseBatch
    cached: Mapping[str, Tensor] | None = None

    def to(
        self, device: torch.device | str, *, teacher_device: torch.device | str | None = None
    ) -> "TrainBatch":
        """Return the batch on the device of the student, the teacher's prompts on that of the teacher."""
        prompts = self.teacher_prompts
        return TrainBatch(
            student_prompts=self.student_prompts.to(device),
            teacher_prompts=None if prompts is None else prompts.to(teacher_device or device),
            responses=self.responses.to(device),
            cached=None
            if self.cached is None
            else {name: value.to(device) for name, value in self.cached.items()},
        )


def build_items(
    examples: Sequence[Example], responses: Sequence[Response], *, authors: frozenset[Author]
) -> tuple[list[TrainItem], int]:
    """Join responses to examples by id; return the items and the number of examples that lack an author.

    Without authors, every example is an item without responses: the student will write them in training.

    Raises:
        DataError: no example has responses of all authors, or a response has no example.
    """
    items = []
    found = join(examples, [response for response in responses if response.author in authors])
    for example in examples:
        own = sorted(found[example.id], key=lambda one: (AUTHORS.index(one.author), one.sample_index))
        if authors <= {response.author for response in own}:
            items.append(TrainItem(example=example, responses=tuple(own)))
    if not items:
        wanted = " and ".join(sorted(authors))
        raise DataError(
            f"training items: expected examples with responses by {wanted}, found none; "
            "did the model answer at all? look at counts.json beside the responses"
        )
    return items, len(examples) - len(items)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The order of training: one seeded permutation an epoch.

    It is cut into steps of `batch_size` items that run across epochs.
    """

    num_items: int
    batch_size: int
    seed: int

    def step(self, step: int) -> list[int]:
        """Return the item numbers of optimiser step `step`, counted from 0.

        A pure function, so a resume needs no state.
        """
        first = step * self.batch_size
        positions = range(first, first + self.batch_size)
        orders = {
            epoch: self._order(epoch) for epoch in {position // self.num_items for position in positions}
        }
        return [orders[position // self.num_items][position % self.num_items] for position in positions]

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.num_items, generator=generator).tolist()


def collate(
    items: Sequence[TrainItem],
    *,
    student: LoadedModel,
    teacher: LoadedModel | None,
    load_images: ImageLoader,
    reference_log_probs: Mapping[str, float] | None = None,
    cache: CacheReader | None = None,
) -> TrainBatch:
    """Encode the prompts once per model, each with its own processor, and pad the responses.

    With a `cache` the teacher's rows are read from it, in the order of the padded responses.
    """
    examples = [item.example for item in items]
    images = [load_images(example) for example in examples]
    return TrainBatch(
        student_prompts=student.encode(examples, images),
        teacher_prompts=teacher.encode(examples, images) if teacher else None,
        responses=pad_responses([item.responses for item in items], reference_log_probs=reference_log_probs),
        cached=cache.read([one.id for item in items for one in item.responses]) if cache else None,
    )
