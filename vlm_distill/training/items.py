"""What a training step reads: items, their deterministic order, and their collation into tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.chat import pad_id
from vlm_distill.batches import PromptBatch, ResponseBatch, TrainItem, pad_responses
from vlm_distill.data.images import ImageLoader
from vlm_distill.data.store import join
from vlm_distill.errors import DataError
from vlm_distill.records import AUTHORS, Author, Example, Response
from vlm_distill.teacher_cache.store import CacheReader
from vlm_distill.training.grouping import group_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainBatch:
    """A micro-batch: one prompt encoding per model, one response batch for both.

    `cached` is what a cache holds of the teacher (teacher_cache/store.py), which then gets no prompts.
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
class TrainOrder:
    """The order of training: one seeded permutation an epoch.

    It is cut into steps of `batch_size` items that run across epochs. With `lengths`, the (prompt, response)
    tokens of every item, a step inside an epoch holds items of similar lengths.
    """

    num_items: int
    batch_size: int
    seed: int
    lengths: Sequence[tuple[int, int]] | None = None
    # Sorting a million items in every step would take longer than a step.
    _orders: dict[int, list[int]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def step(self, step: int) -> list[int]:
        """Return the item numbers of optimiser step `step`, counted from 0.

        A pure function, so a resume needs no state.
        """
        first = step * self.batch_size
        positions = range(first, first + self.batch_size)
        epochs = {position // self.num_items for position in positions}
        orders = {epoch: self._orders.get(epoch) or self._order(epoch) for epoch in epochs}
        self._orders.clear()
        self._orders.update(orders)
        return [orders[position // self.num_items][position % self.num_items] for position in positions]

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order: list[int] = torch.randperm(self.num_items, generator=generator).tolist()
        if self.lengths is None:
            return order
        # The first items end the step that began in the epoch before, the last ones begin one that ends in
        # the next: both steps are mixed.
        first = min(self.num_items, -epoch * self.num_items % self.batch_size)
        last = self.num_items - (self.num_items - first) % self.batch_size
        grouped = group_steps(
            order[first:last], self.lengths, batch_size=self.batch_size, generator=generator
        )
        return [*order[:first], *grouped, *order[last:]]


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
        responses=pad_responses(
            [item.responses for item in items],
            # Not any id: the place of an image would ask for one.
            pad_id=pad_id(student.tokenizer),
            reference_log_probs=reference_log_probs,
        ),
        cached=cache.read([one.id for item in items for one in item.responses]) if cache else None,
    )
