"""Computing the teacher cache: the teacher's forward over responses whose rows are missing.

What is kept of its hidden states is the tier's (tiers.py), the files are in store.py. The teacher's body runs
in its own dtype, whatever the precision of the student's training.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.alignment.alignment import Alignment
from vlm_distill.batches import PromptBatch, ResponseBatch, TrainItem, pad_responses
from vlm_distill.data.images import ImageLoader
from vlm_distill.errors import DataError
from vlm_distill.files import hash_json
from vlm_distill.forward import response_hidden
from vlm_distill.generation.decoding import evaluating
from vlm_distill.generation.prompts import unpadded
from vlm_distill.losses import Rows
from vlm_distill.models.output_layer import require_same_head
from vlm_distill.processes import num_processes, on_main, rank, wait
from vlm_distill.progress import Log, progress
from vlm_distill.records import Author
from vlm_distill.stopping import end, is_asked, patiently, until_asked
from vlm_distill.teacher_cache.store import CachedResponse, CacheReader, CacheStore, content_hash
from vlm_distill.teacher_cache.tiers import CacheConfig, Tier, tier_of

# A kill loses what was computed since the last shard.
SHARD_BYTES, SHARD_SECONDS = 256 * 2**20, 15.0
# How many prompts are encoded again when a cache is continued or read.
PROBES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class CachePlan:
    """What is cached of which teacher, below `folder`.

    `light` has the teacher's output layer alone, `body` loads all of it and is called only if rows are
    missing. Log-probabilities are normalised over the teacher's ids of `alignment`; the student's output
    layer has `student_width` ids.
    """

    config: CacheConfig
    folder: Path
    light: LoadedModel
    body: Callable[[], LoadedModel]
    alignment: Alignment
    student_width: int
    load_images: ImageLoader
    log: Log

    @property
    def tier(self) -> Tier:
        return tier_of(self.config)

    @property
    def key(self) -> dict[str, object]:
        """What rows depend on beside the responses; the fingerprint covers processor and tokenizer."""
        weight = self.light.head.weight
        key: dict[str, object] = {
            "teacher": self.light.fingerprint,
            "dtype": str(weight.dtype),
            "tier": self.config.tier,
        }
        theirs = self.alignment.teacher.key(len(weight))
        ours = self.alignment.student.key(self.student_width)
        if self.alignment.permutation is not None:
            # Responses are known by the student's ids; the teacher read others.
            key["student"] = ours
        return key | self.tier.key(theirs if theirs == ours else [*theirs, *ours])


def cached_by_author(
    plan: CachePlan, items: Sequence[TrainItem], *, names: Mapping[Author, str]
) -> CacheReader:
    """Return what is cached of the items' responses; `names` are those of each author's cache."""
    stores = []
    for author, name in names.items():
        by_author = [
            replace(item, responses=tuple(one for one in item.responses if one.author == author))
            for item in items
        ]
        stores.append(fill_cache(plan, by_author, name=name))
    return CacheReader(stores, tier=plan.tier)


def fill_cache(plan: CachePlan, items: Sequence[TrainItem], *, name: str) -> CacheStore:
    """Return the cache `name` of the items' responses, computing what it lacks.

    Several processes call it together, each computes a share into a part of its own.

    Raises:
        DataError: the cache belongs to another teacher or other prompt ids, is damaged, does not fit on the
            disk, or the teacher runs out of memory or has hidden states that are not finite.
    """
    folder, label = plan.folder / name, f"{name.replace('_', ' ')} cache"
    wanted = {one.id: content_hash(item.example, one) for item in items for one in item.responses}
    missing = on_main(lambda: _check(plan, items, wanted, folder=folder, label=label))
    left = [
        replace(item, responses=tuple(one for one in item.responses if one.id in missing)) for item in items
    ]
    left = [item for item in left if item.responses]
    if left:
        _announce(plan, left, num_stored=len(wanted) - len(missing), folder=folder, label=label)
        _compute(plan, left, CacheStore(folder, plan.key, part=rank()), label=label)
        wait()
    store = CacheStore(folder, plan.key, part=rank())
    assert not store.missing(wanted), "every process has written its share"
    plan.log(
        f"{label}: {len(wanted):,} responses, {store.num_tokens:,} tokens, {store.num_bytes / 2**20:,.1f} MiB"
        + ("" if left else ", unchanged")
    )
    return store


def _check(
    plan: CachePlan, items: Sequence[TrainItem], wanted: Mapping[str, str], *, folder: Path, label: str
) -> set[str]:
    """Return the ids of the responses that lack rows, after a look at those that have some.

    Responses that were generated again make the cache worthless, and it is begun anew.
    """
    store = CacheStore(folder, plan.key)
    changed = store.changed(wanted)
    if changed:
        plan.log(
            f"{label}: prompt, images or token ids of {len(changed):,} responses changed since they were "
            f"cached (first: {changed[0]}); all rows are computed again"
        )
        shutil.rmtree(folder)
        return set(wanted)
    store.verify()
    missing = store.missing(wanted)
    present = [item for item in items if any(one.id not in missing for one in item.responses)]
    for item in present[:: max(1, len(present) // PROBES)][:PROBES]:
        prompts = plan.light.encode([item.example], [plan.load_images(item.example)])
        known = {store.places[one.id].prompt_ids_hash for one in item.responses if one.id not in missing}
        if known != {hash_json(unpadded(prompts)[0])}:
            raise DataError(
                f"{folder}: the prompt of example {item.example.id!r} has other ids than when it was cached "
                "(another transformers version?); delete the folder to compute the cache again"
            )
    return missing


def _announce(
    plan: CachePlan, items: Sequence[TrainItem], *, num_stored: int, folder: Path, label: str
) -> None:
    num_tokens = sum(item.num_tokens for item in items)
    head = plan.light.head
    size = num_tokens * plan.tier.bytes_per_token(head, dtype=head.weight.dtype)
    count = sum(len(item.responses) for item in items)
    plan.log(
        f"{label}: the teacher is loaded for {count:,} responses of {num_tokens:,} tokens "
        f"({num_stored:,} are cached already), tier {plan.config.tier}, about {size / 2**20:,.1f} MiB; "
        "afterwards its output layer stays at most"
    )
    folder.mkdir(parents=True, exist_ok=True)
    if size > (free := shutil.disk_usage(folder).free):
        raise DataError(
            f"{folder}: the teacher cache needs about {size / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB "
            "are free; choose another `output`, `cache.dtype=bfloat16` or `cache.tier=top_k`"
        )


def _compute(plan: CachePlan, items: Sequence[TrainItem], store: CacheStore, *, label: str) -> None:
    body = plan.body()
    if body.fingerprint != plan.light.fingerprint:
        raise DataError(f"{body.path}: the teacher's files changed during the run; start it again")
    require_same_head(plan.light, body)
    # Long responses first: a lack of memory shows early.
    ordered = sorted(items, key=lambda item: -max(len(one.token_ids) for one in item.responses))
    size = plan.config.batch_size
    batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    own = batches[rank() :: num_processes()]
    with patiently():
        stored = _store(plan, body, progress(until_asked(own), label=label, total=len(own)), store)
        if is_asked():
            end(f"{label}: stopped after {stored:,} more responses, which are kept in {store.folder}")


def _store(
    plan: CachePlan, body: LoadedModel, batches: Iterable[Sequence[TrainItem]], store: CacheStore
) -> int:
    """Store the rows of the batches; return how many responses they have."""
    pending: list[CachedResponse] = []
    num_stored, flushed_at = 0, time.monotonic()
    for batch in batches:
        try:
            pending += _responses(plan, body, batch)
        except torch.OutOfMemoryError:
            raise DataError(
                f"{store.folder}: the teacher ran out of memory with {len(batch)} prompts at once; lower "
                "cache.batch_size and start again: what is stored is kept"
            ) from None
        num_bytes = sum(tensor.nbytes for one in pending for tensor in one.tensors.values())
        if num_bytes >= SHARD_BYTES or time.monotonic() - flushed_at >= SHARD_SECONDS:
            store.append(pending)
            num_stored += len(pending)
            pending, flushed_at = [], time.monotonic()
    store.append(pending)
    return num_stored + len(pending)


def _responses(plan: CachePlan, body: LoadedModel, items: Sequence[TrainItem]) -> Iterator[CachedResponse]:
    """Yield what is stored of each response of a batch."""
    examples = [item.example for item in items]
    prompts = body.encode(examples, [plan.load_images(example) for example in examples])
    padded = pad_responses([item.responses for item in items])
    tensors = _tensors(plan, body, prompts.to(body.device), padded.to(body.device), items=items)
    sizes = padded.num_tokens.tolist()
    pieces = {name: value.split(sizes) for name, value in tensors.items()}
    hashes = [hash_json(ids) for ids in unpadded(prompts)]
    owners = [(number, one) for number, item in enumerate(items) for one in item.responses]
    for row, (number, one) in enumerate(owners):
        yield CachedResponse(
            response_id=one.id,
            content=content_hash(items[number].example, one),
            prompt_ids_hash=hashes[number],
            tensors={name: piece[row] for name, piece in pieces.items()},
        )


@torch.no_grad()
def _tensors(
    plan: CachePlan,
    body: LoadedModel,
    prompts: PromptBatch,
    padded: ResponseBatch,
    *,
    items: Sequence[TrainItem],
) -> dict[str, Tensor]:
    with evaluating(body.model):
        hidden = response_hidden(body, prompts, plan.alignment.for_teacher(padded))
    if not bool(hidden.isfinite().all()):
        raise DataError(
            f"teacher cache: hidden states are not finite in the batch of example {items[0].example.id!r}; "
            "load the teacher in float32 or bfloat16"
        )
    rows = Rows(hidden=hidden, head=body.head, compared=plan.alignment.teacher)
    # Labels are the student's ids, whichever ids the teacher has for the same tokens.
    columns = plan.alignment.student.columns(padded.labels, plan.student_width)
    return plan.tier.keep(rows, columns)
