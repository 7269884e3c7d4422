"""The generation stage: responses of one author in one round, stored as they come and resumed after a kill.

Responses are facts: they belong to a question (model, stop ids, ids that must not be generated, prompts,
sampling), whatever engine answered it. Complete ones need no engine, interrupted ones are continued by the
present one.

The batch is the unit of resume: a batch whose responses are all stored (or were dropped and counted) is
skipped. Rows have their own seeds, so what one engine generates again comes out the same.

Here: what is generated, as a list of batches. Which process generates which of them is in executors.py: into
the folder of the stage or into a part of it, and all parts are read.
"""

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlm_distill.data.store import ResponseStore, engine_name, remedy_for
from vlm_distill.errors import DataError, EngineError
from vlm_distill.files import hash_json
from vlm_distill.generation.engine import Engine, Identity, OpenEngine, Sampling
from vlm_distill.generation.executors import Batch, executor
from vlm_distill.processes import num_processes, on_main
from vlm_distill.progress import Log, progress
from vlm_distill.records import Author, Example, Response, response_id
from vlm_distill.shards import MANIFEST, part_folders
from vlm_distill.state import find_state, read_state, write_state
from vlm_distill.stopping import end, is_asked, patiently, until_asked

FORMAT_VERSION = 2
# A kill loses what was generated since the last shard.
SHARD_ROWS = 8192
SHARD_SECONDS = 15.0

DROPPED, COUNTS = "dropped.json", "counts.json"

Drop = Literal["empty", "aborted"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What became of the prompts of a stage.

    `overlong` counts prompts that do not fit the context, the others count responses: `stop` and `length` are
    stored, `empty` (no token besides the stop token) and `aborted` are not.
    """

    prompts: int
    overlong: int
    stop: int
    length: int
    empty: int
    aborted: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Dropped:
    """Why which responses under a key are not stored, by their ids."""

    key: str
    dropped: Mapping[str, Drop]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Which responses are wanted: to `examples`, by one author in one round.

    `label` names it in the log, and `bound` the setting that bounds the length of a response.
    """

    examples: Sequence[Example]
    sampling: Sampling
    identity: Identity
    author: Author
    round: int
    label: str
    bound: str = "generate.sampling.max_new_tokens"

    def key(self) -> str:
        """Return the hash of the question that the responses answer."""
        prompts = [[example.id, example.prompt_hash()] for example in self.examples]
        asked = [self.identity.key(), self.sampling.hash(), prompts]
        return hash_json([FORMAT_VERSION, asked, self.author, self.round])

    def ids(self, example: Example) -> list[str]:
        """Return the ids of the responses to `example`."""
        samples = range(self.sampling.num_samples)
        return [
            response_id(example.id, self.author, round=self.round, sample_index=index) for index in samples
        ]

    def generate(self, engine: Engine, batch: Batch) -> list[Response]:
        """Return the responses to the examples with these indices."""
        completions = engine.generate([self.examples[i] for i in batch], self.sampling)
        sampling = self.sampling.hash()
        return [
            Response(
                id=response_id(one.example_id, self.author, round=self.round, sample_index=one.sample_index),
                example_id=one.example_id,
                author=self.author,
                round=self.round,
                sample_index=one.sample_index,
                text=one.text,
                token_ids=one.token_ids,
                finish=one.finish,
                model_fingerprint=self.identity.fingerprint,
                prompt_ids_hash=one.prompt_ids_hash,
                sampling=sampling,
                token_log_probs=one.token_log_probs,
            )
            for one in completions
        ]


@dataclass(kw_only=True, slots=True)
class _Results:
    """The store of a stage with what is not written yet, and the ids of dropped responses by reason.

    `engine` is what the present engine says of itself. What a store `is_stale` with, the responses to another
    question, goes when the first to this one are there.
    """

    store: ResponseStore
    key: str
    engine: Mapping[str, str]
    done: set[str]
    dropped: dict[str, Drop]
    is_stale: bool = False
    pending: list[Response] = field(default_factory=list)
    flushed_at: float = field(default_factory=time.monotonic)

    def add(self, responses: Sequence[Response]) -> None:
        for response in responses:
            if response.id in self.done:
                continue  # its batch was stored in part
            self.done.add(response.id)
            reason = _why_dropped(response)
            if reason is None:
                self.pending.append(response)
            else:
                self.dropped[response.id] = reason
        if len(self.pending) >= SHARD_ROWS or time.monotonic() - self.flushed_at >= SHARD_SECONDS:
            self.flush()

    def replace(self) -> None:
        """Delete the responses to another question."""
        self.store.reset(self.key)
        (self.store.folder / COUNTS).unlink(missing_ok=True)
        self.is_stale = False

    def flush(self) -> None:
        if self.is_stale:
            if not self.pending and not self.dropped:
                return
            self.replace()
        # Dropped ids first: a kill in between makes a batch run again, it never makes one look done.
        write_state(self.store.folder / DROPPED, _Dropped(key=self.key, dropped=self.dropped))
        if self.pending:
            self.store.append(self.pending, self.engine)
        self.pending, self.flushed_at = [], time.monotonic()

    def within(self, folder: Path) -> "_Results":
        """Return the results of a part in `folder`, or these where it is their own."""
        if folder == self.store.folder:
            return self
        store, empty = ResponseStore.create_or_resume(folder, self.key), _empty([folder], self.key)
        done = set(self.done)
        return _Results(store=store, key=self.key, engine=self.engine, done=done, dropped=empty)


def generate_responses(job: Job, open_engine: OpenEngine, *, folder: Path, log: Log) -> list[Response]:
    """Return the responses of `job`, in the order of its examples; those not in `folder` yet are generated.

    Several processes call it together, with the same arguments and a folder that all can write; each gets all
    responses. Where all are stored no engine is opened.

    Finished work is keyed by the identity of the model, sampling, prompts, author and round; a folder with
    another key is emptied, once the first responses are there. Empty and aborted responses and overlong
    prompts are missing from the result and counted in counts.json beside the shards (`read_counts`). An empty
    one is an answer, an aborted one is the engine's failure and is asked again.

    Raises:
        DataError: an example id stands twice.
        EngineError: the engine cannot be opened, no prompt fits the context, or every response was aborted.
    """
    _check_unique(job.examples)
    if (complete := on_main(lambda: _complete(folder, job.key()))) is None:
        with open_engine() as engine:
            _fill(job, engine, folder=folder, log=log)
    else:
        log(f"{job.label}: unchanged, {complete}")
    by_id = {response.id: response for response in ResponseStore(folder).read()}
    return [by_id[one] for example in job.examples for one in job.ids(example) if one in by_id]


def read_counts(folder: Path) -> Counts:
    """Return the counts of a finished stage; DataError where they are missing or damaged."""
    return read_state(Counts, folder / COUNTS, remedy=remedy_for(folder))


def find_counts(folder: Path) -> Counts | None:
    """Return the counts of a stage, None before its end; DataError where they are damaged."""
    return find_state(Counts, folder / COUNTS, remedy=remedy_for(folder))


def _complete(folder: Path, key: str) -> str | None:
    """Return in words what is stored under the key, None where some may be missing."""
    store = ResponseStore(folder) if (folder / MANIFEST).exists() else None
    if store is None or store.key != key or not store.is_complete:
        return None
    counts = read_counts(folder)
    lost = [f"{counts.overlong:,} prompts were too long"] if counts.overlong else []
    lost += [f"{counts.aborted:,} responses were aborted"] if counts.aborted else []
    remedy = f"; {' and '.join(lost)}: delete {folder} to ask again" if lost else ""
    written = f", written by {store.written_by}" if len(store) else ""
    return f"{len(store):,} stored responses are used{written}{remedy}"


def _open(folder: Path, job: Job, *, plan: Sequence[Batch], engine: dict[str, str], log: Log) -> _Results:
    """Return the store of a job with all that earlier starts have left of it; what is of another job goes.

    `plan` are all batches for which the engine has room.
    """
    key = job.key()
    stored = ResponseStore(folder) if (folder / MANIFEST).exists() else None
    is_kept = stored is not None and stored.key == key and len(stored) > 0
    if job.examples and not plan and not is_kept:
        raise EngineError(
            f"{job.label}: none of the {len(job.examples)} prompts fits the model's context with "
            f"{job.sampling.max_new_tokens} new tokens; lower {job.bound} or shorten the prompts"
        )
    store = ResponseStore.create_or_resume(folder, key) if stored is None else stored
    # What a kill left of a reset.
    for part in part_folders(folder):
        if not (part / MANIFEST).exists() or ResponseStore(part).key != store.key:
            shutil.rmtree(part)
    empty = _empty([folder, *part_folders(folder)], key)
    if store.key != key:
        log(
            f"{job.label}: model, stop ids, sampling or prompts changed since {len(store):,} responses were "
            "stored; all are generated again"
        )
        results = _Results(store=store, key=key, engine=engine, done={*empty}, dropped=empty, is_stale=True)
        if num_processes() > 1:
            # Their parts may only hold responses to one question.
            results.replace()
        return results
    if any(other != engine for other in store.engines):
        log(
            f"{job.label}: {len(store):,} responses stay as they are, stored by {store.written_by}; "
            f"{engine_name(engine)} continues"
        )
    return _Results(store=store, key=key, engine=engine, done=store.ids() | empty.keys(), dropped=empty)


def _read_dropped(folders: Iterable[Path], key: str) -> dict[str, Drop]:
    """Return why which responses are not stored."""
    found = [find_state(_Dropped, folder / DROPPED, remedy=remedy_for(folder)) for folder in folders]
    dropped = [item for one in found if one and one.key == key for item in one.dropped.items()]
    # Another process may have been answered with nothing where one was aborted.
    return dict(sorted(dropped, key=lambda item: item[1] == "empty"))


def _empty(folders: Iterable[Path], key: str) -> dict[str, Drop]:
    """Return the responses that need not be asked for again."""
    return {id: reason for id, reason in _read_dropped(folders, key).items() if reason == "empty"}


def _fill(job: Job, engine: Engine, *, folder: Path, log: Log) -> None:
    plan = on_main(lambda: engine.plan(job.examples, job.sampling))
    settings = dict(engine.settings)
    results = on_main(lambda: _open(folder, job, plan=plan, engine=settings, log=log))
    remaining, overlong = _remaining(results, job, plan, log=log)

    def generate(batches: Sequence[Batch], part_folder: Path) -> None:
        with patiently():
            _generate(job, engine, batches, results.within(part_folder))

    executor()(remaining, generate, folder=folder)
    if results.is_stale:
        on_main(results.replace)
    on_main(lambda: _finish(folder, job, overlong=overlong, log=log))


def _generate(job: Job, engine: Engine, batches: Sequence[Batch], part: _Results) -> None:
    """Generate the batches into a part, as far as no signal asks to end."""
    before = len(part.done)
    try:
        for batch in progress(until_asked(batches), label=job.label, total=len(batches)):
            part.add(job.generate(engine, batch))
    except EngineError:
        # Ctrl-C also reaches the processes that an engine has started, which die of it.
        if not is_asked():
            raise
    finally:
        part.flush()
    if is_asked():
        new = len(part.done) - before
        end(f"{job.label}: stopped after {new:,} more responses, which are kept in {part.store.folder}")


def _remaining(results: _Results, job: Job, plan: Sequence[Batch], *, log: Log) -> tuple[list[Batch], int]:
    """Return the batches that are not done yet, and how many prompts are too long."""
    fitting = {i for batch in plan for i in batch}
    # Another engine may have had more room.
    answered = (i for i, one in enumerate(job.examples) if not results.done.isdisjoint(job.ids(one)))
    overlong = len(job.examples) - len(fitting.union(answered))
    remaining = [
        batch for batch in plan if not all(results.done.issuperset(job.ids(job.examples[i])) for i in batch)
    ]
    log(
        f"{job.label}: {len(fitting):,} prompts, {job.sampling.num_samples} responses each, "
        f"in {len(plan):,} batches, {len(plan) - len(remaining):,} of them done"
        + (f"; {overlong:,} prompts are too long and skipped" if overlong else "")
        + (f"; shared by {num_processes()} processes" if num_processes() > 1 else "")
    )
    return remaining, overlong


def _finish(folder: Path, job: Job, *, overlong: int, log: Log) -> None:
    store = ResponseStore(folder)
    finish_of = {response.id: response.finish for response in store.read()}
    # One that was aborted before may be answered now.
    drops = [
        why
        for id, why in _read_dropped([folder, *part_folders(folder)], store.key).items()
        if id not in finish_of
    ]
    finishes = list(finish_of.values())
    counts = Counts(
        prompts=len(job.examples),
        overlong=overlong,
        stop=finishes.count("stop"),
        length=finishes.count("length"),
        empty=drops.count("empty"),
        aborted=drops.count("aborted"),
    )
    if counts.aborted and counts.aborted == len(finishes) + len(drops):
        raise EngineError(
            f"{job.label}: all {counts.aborted} responses were aborted because the logits are not finite; "
            "load the model in float32 or bfloat16, or check its weights"
        )
    write_state(folder / COUNTS, counts)
    store.finish()
    log(
        f"{job.label}: {len(finishes):,} responses stored, {counts.length:,} of them cut "
        f"at max_new_tokens; dropped {counts.empty:,} empty and {counts.aborted:,} aborted ones"
    )


def _check_unique(examples: Sequence[Example]) -> None:
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise DataError(
                f"example id {example.id!r} stands twice: responses are joined by id; make the ids unique"
            )
        seen.add(example.id)


def _why_dropped(response: Response) -> Drop | None:
    """Return why a response is not stored, None for one that is."""
    if response.finish == "aborted":
        return "aborted"
    # A stop string may end a response with its first token and leave text before it.
    is_empty = response.finish == "stop" and len(response.token_ids) <= 1 and not response.text
    return "empty" if is_empty else None
