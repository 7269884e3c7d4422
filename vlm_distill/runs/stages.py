"""The steps of a run: responses, teacher cache, training and measuring, each skipped or resumed by itself.

Which steps there are is in plan.py, their order in pipeline.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.turns import end_of_turn
from vlm_distill.batches import TrainItem
from vlm_distill.config import as_json
from vlm_distill.data.augment import Augment
from vlm_distill.data.images import ImageLoader
from vlm_distill.data.store import ResponseStore, all_stored
from vlm_distill.errors import DataError
from vlm_distill.evaluation.measures import Measured
from vlm_distill.files import hash_json
from vlm_distill.generation.backend import Asked
from vlm_distill.generation.engines import opened
from vlm_distill.generation.live import sample_responses
from vlm_distill.generation.references import encode_references
from vlm_distill.generation.work import Job, generate_responses
from vlm_distill.losses import Objective
from vlm_distill.models.vision_cache import without_vision_cache
from vlm_distill.processes import on_main
from vlm_distill.records import Author, Example, Response
from vlm_distill.runs.context import Context
from vlm_distill.runs.plan import TEACHER, Step, Track, track_of
from vlm_distill.runs.room import with_room
from vlm_distill.stopping import end, is_asked, patiently
from vlm_distill.teacher_cache.fill import cached_by_author, fill_cache
from vlm_distill.training.config import TrainConfig
from vlm_distill.training.items import build_items
from vlm_distill.training.reference import reference_log_probs
from vlm_distill.training.step import HELD_OUT_KL, Evaluate, Sample, Stage
from vlm_distill.training.train import MODEL, find_trained, finished, read_trained, train


def generate(context: Context, step: Step) -> None:
    """Sample the responses of a step, as far as they are not stored."""
    if step.track == TEACHER:
        _stored(context, step, context.asked_teacher())
        # The student before any training answers next.
        context.release_teacher()
        return
    context.release_teacher()
    _stored(context, step, context.asked_student(step.starts_from))


def cache(context: Context, step: Step) -> None:
    """Store what the teacher says about the responses that a step trains on."""
    track = track_of(context.config, step)
    student, objective = context.student(step.starts_from), track.objective.build()
    work = _with_room(context, step, student, objective, _work(context, step, student, objective))
    context.caches[step.name] = cached_by_author(context.cache_plan(), work.items, names=step.settings["of"])
    context.release_teacher()
    context.mark_cached(step, num_items=len(work.items))


def measure(context: Context, step: Step) -> Measured:
    """Return the row of one model for the summary."""
    if step.track == TEACHER:
        evaluator, asked = context.evaluator(None), context.asked_teacher()
    else:
        evaluator, asked = context.evaluator(context.held_out), context.asked_student(step.starts_from)
    folder = context.folder / step.folder
    found = evaluator.measure(asked, label=step.label, track=step.track, folder=folder)
    # Training starts from what is on the disk, as it does in a run that was killed in between.
    context.drop_student()
    context.release_teacher()
    return found


def train_student(context: Context, step: Step) -> None:
    """Train the student of a stage on its responses, or find it trained already."""
    track = track_of(context.config, step)
    objective, config = _objective(context, step, track), _with_budget(context, track)
    student = context.take_student(step.starts_from)
    work = _work(context, step, student, objective)
    if work.num_without_response:
        of_all = f"{work.num_without_response:,} of {len(context.examples):,}"
        context.log(f"{step.label}: {of_all} prompts have no usable response and are left out")
    settings = [config.decisive(), _settings(context, step, track)]
    key = hash_json([_inputs_hash(context, student, work.items), *settings])
    trained = find_trained(context.folder / step.folder)
    # A student that was trained on all of them has room for them: no prompt is encoded to count its tokens.
    if trained is None or trained.key != key:
        work = _with_room(context, step, student, objective, work)
        key = hash_json([_inputs_hash(context, student, work.items), *settings])
    if finished(context.folder / step.folder, key=key):
        context.log(
            f"{step.label}: unchanged, the trained student in {context.folder / step.folder / MODEL} is used"
        )
        return
    # Before the stage, which also samples from this student and evaluates it.
    student = _without_lost_features(context, student, step, track)
    stage = _stage(context, step, student, objective, work.items, key=key)
    context.release_teacher()
    if objective.needs_reference_model:
        scored = on_main(lambda: reference_log_probs(stage, config, log=context.log))
        stage = replace(stage, reference_log_probs=scored)
    waited = math.fsum(context.seconds.pop(one.name, 0.0) for one in _response_steps(context, step))
    with patiently():
        train(
            config,
            stage,
            log=context.log,
            seconds_before=waited,
            left_out=work.num_without_response + work.num_too_long,
            too_long=work.num_too_long,
        )
        if is_asked():
            end(f"{step.label}: stopped after this stage, which is complete")


def cache_existing(context: Context) -> list[str]:
    """Fill the caches of the teacher's responses and labels and of all stored rounds; return a line each.

    The teacher's responses are sampled first where they are missing.
    """
    lines = []
    assert context.teacher is not None
    steps = [step for step in context.steps.values() if step.kind == "cache" and step.track != TEACHER]
    sets = {name: (author, step) for step in steps for author, name in step.settings["of"].items()}
    # What all rounds share comes first.
    for name, (author, step) in sorted(sets.items(), key=lambda one: one[1][0] == "student"):
        responses = _existing(context, step, author)
        if responses is None:
            continue
        items, _ = build_items(context.examples, responses, authors=frozenset({author}))
        items = with_room(context, items, readers=[context.teacher.loaded], new_tokens=0, label=name)
        filled = fill_cache(context.cache_plan(), items, name=name)
        size = f"{filled.num_bytes / 2**20:,.1f} MiB in {filled.folder}"
        lines.append(f"{name}: {len(filled.places):,} responses, {filled.num_tokens:,} tokens, {size}")
    return lines


def _existing(context: Context, step: Step, author: Author) -> list[Response] | None:
    """Return the responses of one author that a step trains on; None where a student has none yet."""
    if author == "reference":
        labels = _references(context, context.student(""))
        context.alignment.require_readable(labels)
        return labels
    if author == "teacher":
        stored = _stored(context, context.steps[f"{TEACHER}.generate"], context.asked_teacher())
        return context.alignment.for_student(stored)
    folder = context.folder / context.steps[f"{step.stage}.generate"].folder
    return ResponseStore(folder).read() if all_stored(folder) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Work:
    """The items of a stage, and how many prompts are left out: without a usable response, or too long."""

    items: Sequence[TrainItem]
    num_without_response: int
    num_too_long: int = 0


def _work(context: Context, step: Step, student: LoadedModel, objective: Objective) -> _Work:
    """Return all prompts with their responses, however long they are."""
    authors, stored = objective.stored_authors, list[Response]()
    if "reference" in authors:
        labels = _references(context, student)
        if objective.needs_teacher:
            context.alignment.require_readable(labels)
        stored += labels
    for one in _response_steps(context, step):
        # They are complete: whoever wrote them, they are what is trained on.
        stored += context.alignment.for_student(ResponseStore(context.folder / one.folder).read())
    items, missing = build_items(context.examples, stored, authors=authors)
    return _Work(items=items, num_without_response=missing)


def _with_room(
    context: Context, step: Step, student: LoadedModel, objective: Objective, work: _Work
) -> _Work:
    """Return what of the work fits into the positions of those that read it."""
    is_stored = objective.stored_authors == objective.authors
    new_tokens = 0 if is_stored else context.config.generate.sampling.max_new_tokens
    readers = [student]
    if objective.needs_teacher:
        assert context.teacher is not None
        readers.append(context.teacher.loaded)
    items = with_room(context, work.items, readers=readers, new_tokens=new_tokens, label=step.label)
    return replace(work, items=items, num_too_long=len(work.items) - len(items))


def _response_steps(context: Context, step: Step) -> list[Step]:
    """Return the steps that sample what a stage trains on, the teacher's first."""
    names = [f"{stage}.generate" for stage in (TEACHER, step.stage)]
    return [context.steps[name] for name in names if name in step.needs]


def _stage(
    context: Context,
    step: Step,
    student: LoadedModel,
    objective: Objective,
    items: Sequence[TrainItem],
    *,
    key: str,
) -> Stage:
    track = track_of(context.config, step)
    augment = track.augment
    load_images = _augmented(context.load_images, augment) if augment else context.load_images
    teacher = context.teacher.loaded if context.teacher else None
    cached = None
    if context.config.cache is not None and objective.needs_teacher:
        filled = context.steps[f"{step.stage}.cache"]
        cached = context.caches.pop(filled.name, None) or cached_by_author(
            context.cache_plan(), items, names=filled.settings["of"]
        )
    return Stage(
        student=student,
        teacher=without_vision_cache(teacher) if teacher and _is_random(augment) else teacher,
        alignment=context.alignment,
        objective=objective,
        items=items,
        load_images=load_images,
        folder=context.folder / step.folder,
        key=key,
        label=step.label,
        seed=_seed(context, step),
        round=max(1, step.round),
        num_rounds=step.num_rounds,
        sample=_sampler(context, student, load_images),
        evaluate=_live_evaluation(context, student) if track.train.evaluate_every else None,
        cache=cached,
        trust_remote_code=context.config.student.trust_remote_code,
    )


def _objective(context: Context, step: Step, track: Track) -> Objective:
    """Return the objective of a track; its curricula remember the rounds before."""
    objective = track.objective.build()
    before = context.steps.get(f"{step.starts_from}.train")
    if before is not None and before.track == step.track:
        objective.load_state_dict(read_trained(context.folder / before.folder).objective)
    return objective


def _with_budget(context: Context, track: Track) -> TrainConfig:
    """Return how a track trains; a control's rounds share the tokens that the steps of its budget took."""
    if not track.budget_of:
        return track.train
    folders = (context.folder / context.steps[name].folder for name in track.budget_of)
    tokens = sum(read_trained(folder).tokens for folder in folders)
    return track.train.model_copy(update={"tokens": math.ceil(tokens / track.num_rounds)})


def _settings(context: Context, step: Step, track: Track) -> list[Any]:
    """Return what decides the weights of a stage beside its inputs and its training record."""
    settings: list[Any] = [as_json(track.objective), track.augment.model_dump() if track.augment else None]
    settings += [step.round, _seed(context, step)]
    objective = track.objective.build()
    if objective.stored_authors != objective.authors:
        settings.append(context.config.generate.sampling.model_dump(mode="json"))
    return settings


def _seed(context: Context, step: Step) -> int:
    return context.config.seed * 1009 + max(1, step.round)


def _inputs_hash(context: Context, student: LoadedModel, items: Sequence[TrainItem]) -> str:
    """Return the hash of everything that a stage trains on: models, data and responses."""
    teacher = context.teacher.loaded.fingerprint if context.teacher else None
    ids = [response.token_ids for item in items for response in item.responses]
    return hash_json([student.fingerprint, teacher, context.dataset.fingerprint, ids])


def _without_lost_features(context: Context, student: LoadedModel, step: Step, track: Track) -> LoadedModel:
    """Return a student whose tower runs in every forward, where its features cannot be kept."""
    if student.vision_cache is None:
        return student
    learns = track.train.trainable.vision != "frozen"
    if not (learns or _is_random(track.augment)):
        return student
    reason = "the vision tower learns" if learns else "images are changed at random"
    context.log(f"{step.label}: {reason}, so features of images are not kept")
    return without_vision_cache(student)


def _is_random(augment: Augment | None) -> bool:
    return augment is not None and augment != Augment()


def _augmented(load_images: ImageLoader, augment: Augment) -> ImageLoader:
    # The trainer seeds torch at every step, so the draws are a function of the step.
    def load(example: Example) -> list[Image.Image]:
        return [augment(image, seed=int(torch.randint(2**31, ()))) for image in load_images(example)]

    return load


def _sampler(context: Context, student: LoadedModel, load_images: ImageLoader) -> Sample:
    """Return a function that lets the student, as it is at that moment, answer prompts with a seed."""
    engine = context.live_engine(student, load_images)
    sampling = context.config.generate.sampling.model_copy(update={"num_samples": 1})

    def sample(examples: Sequence[Example], seed: int) -> list[Response]:
        seeded = sampling.model_copy(update={"seed": seed})
        return sample_responses(engine, examples, seeded, batch_size=engine.batch_size)

    return sample


def _live_evaluation(context: Context, student: LoadedModel) -> Evaluate | None:
    """Return a function that compares the live student with its teacher, None where there is nothing to."""
    if context.config.evaluate is None or context.held_out is None:
        return None
    evaluator = context.evaluator(context.held_out)

    def evaluate() -> dict[str, float]:
        # Measured once: processes that differ in the last bit would stop early at different steps.
        found = on_main(lambda: evaluator.live(student))
        return {HELD_OUT_KL: found.token_kl, "held_out_top1": found.top1}

    return evaluate


def _references(context: Context, student: LoadedModel) -> list[Response]:
    if end_of_turn(student.processor, stop_ids=student.stop_ids) is None:
        end = student.tokenizer.convert_ids_to_tokens(student.stop_ids[0])
        context.log(
            f"labels: the chat template of {student.path} shows no end of an answer; they end with {end}"
        )
    return encode_references(
        context.examples,
        student.tokenizer,
        stop_ids=student.stop_ids,
        fingerprint=student.fingerprint,
        image_token_ids=student.image_token_ids,
        skips_bad=context.dataset.skips_bad_rows,
    )


def _require_same_question(folder: Path, job: Job) -> None:
    """Refuse to replace complete responses: another model, or other ids of its pair, asks for them now."""
    if all_stored(folder) and ResponseStore(folder).key != job.key():
        raise DataError(
            f"{folder}: holds responses of another student or teacher or to other prompts; delete it to "
            "generate them again, or give the run another `output`"
        )


def _stored(context: Context, step: Step, asked: Asked) -> list[Response]:
    """Return the responses of a step by its model, sampling those that are not stored yet."""
    settings, author = context.config.generate, step.settings["author"]
    # Every author and round draws its own random numbers.
    seed = int(hash_json([settings.sampling.seed, context.config.seed, author, step.round])[:8], 16)
    asked = replace(asked, suppressed_ids=context.alignment.suppressed_by(author))
    job = Job(
        examples=context.examples,
        sampling=settings.sampling.model_copy(update={"seed": seed}),
        identity=asked.identity,
        author=author,
        round=step.round,
        label=f"{step.label} responses",
    )
    engine, folder = settings.engine, context.folder / step.folder
    on_main(lambda: _require_same_question(folder, job))
    return generate_responses(
        job, lambda: opened(engine, asked, where="generate.engine"), folder=folder, log=context.log
    )
