"""The stages of a run: responses, training and measuring of one student, each skipped or resumed by itself.

Their order is in pipeline.py.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.batches import TrainItem
from vlm_distill.data.augment import Augment
from vlm_distill.data.images import ImageLoader, ImageStore
from vlm_distill.data.store import ResponseStore
from vlm_distill.files import hash_json
from vlm_distill.generation.engine import Engine, TransformersEngineConfig, VllmEngineConfig
from vlm_distill.generation.live import sample_responses
from vlm_distill.generation.references import encode_references
from vlm_distill.generation.transformers_engine import TransformersEngine
from vlm_distill.generation.vllm_engine import VllmEngine
from vlm_distill.generation.work import generate_responses
from vlm_distill.losses import Objective, ObjectiveConfig
from vlm_distill.models.vision_cache import without_vision_cache
from vlm_distill.processes import on_main
from vlm_distill.records import Author, Example, Response
from vlm_distill.runs.context import Context, Turn, load_student
from vlm_distill.runs.evaluator import Measured, compare_with_teacher, live_agreement, score_both_ways
from vlm_distill.runs.teacher import DeferredEngine
from vlm_distill.teacher_cache.fill import cached_by_author, fill_cache
from vlm_distill.training.config import TrainConfig
from vlm_distill.training.items import build_items
from vlm_distill.training.reference import reference_log_probs
from vlm_distill.training.step import HELD_OUT_KL, Evaluate, Sample, Stage
from vlm_distill.training.train import Trained, finished, train


def train_student(
    context: Context,
    start: str | Path,
    label: str,
    config: TrainConfig,
    objective_config: ObjectiveConfig,
    objective: Objective,
    *,
    turn: Turn,
    augment: Augment | None = None,
) -> Trained:
    """Run one training stage with its responses, or return what it left when it is done already."""
    student = load_student(context, start)
    authors, started = objective.stored_authors, time.monotonic()
    stored = _responses(context, student, authors, turn=turn)
    seconds = time.monotonic() - started
    examples = context.examples if authors == objective.authors else _fitting(context, student, label)
    items, missing = build_items(examples, stored, authors=authors)
    missing += len(context.examples) - len(examples)
    if missing:
        of_all = f"{missing:,} of {len(context.examples):,}"
        context.log(f"{label}: {of_all} prompts have no usable response and are left out")
    seed = context.config.seed * 1009 + max(1, turn.round)
    settings: list[Any] = [asdict(objective_config), augment.model_dump() if augment else None]
    settings += [turn.round, seed]
    if authors != objective.authors:
        settings.append(context.config.generate.sampling.model_dump(mode="json"))
    key = hash_json([_inputs_hash(context, student, items), config.decisive(), settings])
    done = finished(_stage_folder(context, label), key=key)
    if done:
        context.log(f"{label}: unchanged, the trained student in {done.model} is used")
        return done
    load_images = _augmented(context.load_images, augment) if augment else context.load_images
    # Before the stage, which also samples from this student and evaluates it.
    student = _without_lost_features(context, student, label, config, augment)
    stage = _stage(
        context, student, label, objective, items, load_images=load_images, key=key, seed=seed, turn=turn
    )
    if _is_random(augment) and stage.teacher is not None:
        stage = replace(stage, teacher=without_vision_cache(stage.teacher))
    stage = _with_cache(context, stage, turn)
    if context.source is not None:
        context.source.release()
    if objective.needs_reference_model:
        scored = on_main(lambda: reference_log_probs(stage, config, log=context.log))
        stage = replace(stage, reference_log_probs=scored)
    trained = train(config, stage, log=context.log, seconds_before=seconds, left_out=missing)
    if context.vision_cache is not None:
        context.vision_cache.flush()
    return trained


def _with_cache(context: Context, stage: Stage, turn: Turn) -> Stage:
    """Return the stage with what the teacher says about its responses, where the run caches that."""
    if context.config.cache is None or not stage.objective.needs_teacher:
        return stage
    names = {author: _name(author, turn) for author in sorted(stage.objective.authors)}
    return replace(stage, cache=cached_by_author(context.cache_plan(), stage.items, names=names))


def _without_lost_features(
    context: Context, student: LoadedModel, label: str, config: TrainConfig, augment: Augment | None
) -> LoadedModel:
    """Return a student whose tower runs in every forward, where its features cannot be kept."""
    if student.vision_cache is None:
        return student
    learns = config.trainable.vision != "frozen"
    if not (learns or _is_random(augment)):
        return student
    reason = "the vision tower learns" if learns else "images are changed at random"
    context.log(f"{label}: {reason}, so features of images are not kept")
    return without_vision_cache(student)


def _is_random(augment: Augment | None) -> bool:
    return augment is not None and augment != Augment()


def _stage_folder(context: Context, label: str) -> Path:
    return context.folder / label.replace(" ", "_")


def _stage(
    context: Context,
    student: LoadedModel,
    label: str,
    objective: Objective,
    items: Sequence[TrainItem],
    *,
    load_images: ImageLoader,
    key: str,
    seed: int,
    turn: Turn,
) -> Stage:
    return Stage(
        student=student,
        teacher=context.teacher,
        vocabulary=context.vocabulary,
        objective=objective,
        items=items,
        load_images=load_images,
        folder=_stage_folder(context, label),
        key=key,
        label=label,
        seed=seed,
        round=max(1, turn.round),
        num_rounds=turn.num_rounds,
        sample=_sampler(context, student, load_images),
        evaluate=_evaluator(context, student),
        trust_remote_code=context.config.student.trust_remote_code,
    )


def _engine(context: Context, loaded: LoadedModel, load_images: ImageLoader) -> TransformersEngine:
    """Return the engine inside this process, which never writes what the other model could not read.

    A student in the middle of its training answers with it whatever `generate.engine` says.
    """
    config = context.config.generate.engine
    # The batch of vLLM counts what is handed over, not what is decoded together.
    own = config if isinstance(config, TransformersEngineConfig) else TransformersEngineConfig()
    return TransformersEngine(
        loaded=loaded,
        load_images=load_images,
        batch_size=own.batch_size,
        suppressed_ids=context.pair.suppressed_ids if context.pair else (),
    )


@contextmanager
def _stored_engine(context: Context, loaded: LoadedModel, author: Author) -> Iterator[Engine]:
    """Yield the engine that `generate.engine` names, for responses that are stored; free it afterwards."""
    config = context.config
    if not isinstance(config.generate.engine, VllmEngineConfig):
        own = _engine(context, loaded, context.load_images)
        whole = context.source.whole if context.source and author == "teacher" else None
        if whole is None:
            yield own
        else:
            yield DeferredEngine(light=own, whole=lambda: _engine(context, whole(), context.load_images))
        return
    settings = config.teacher if author == "teacher" else config.student
    with VllmEngine(
        loaded=loaded,
        load_images=context.load_images,
        config=config.generate.engine,
        suppressed_ids=context.pair.suppressed_ids if context.pair else (),
        trust_remote_code=settings is not None and settings.trust_remote_code,
    ) as engine:
        yield engine


def _fitting(context: Context, student: LoadedModel, label: str) -> list[Example]:
    """Return the prompts that the student can answer during training within its context."""
    engine = _engine(context, student, context.load_images)
    plan = engine.plan(context.examples, context.config.generate.sampling)
    fitting = [context.examples[index] for index in sorted(index for batch in plan for index in batch)]
    if len(fitting) < len(context.examples):
        context.log(f"{label}: {len(context.examples) - len(fitting):,} prompts are too long and left out")
    return fitting


def _sampler(context: Context, student: LoadedModel, load_images: ImageLoader) -> Sample:
    """Return a function that lets the student, as it is at that moment, answer prompts with a seed."""
    engine = _engine(context, student, load_images)
    sampling = context.config.generate.sampling.model_copy(update={"num_samples": 1})

    def sample(examples: Sequence[Example], seed: int) -> list[Response]:
        seeded = sampling.model_copy(update={"seed": seed})
        return sample_responses(engine, examples, seeded, batch_size=engine.batch_size)

    return sample


def _evaluator(context: Context, student: LoadedModel) -> Evaluate | None:
    """Return a function that compares the live student with its teacher, None where there is nothing to."""
    config, teacher, held_out = context.config.evaluate, context.teacher, context.held_out
    if config is None or teacher is None or held_out is None:
        return None

    def evaluate() -> dict[str, float]:
        # Measured once: processes that differ in the last bit would stop early at different steps.
        found = on_main(
            lambda: live_agreement(
                config, student, teacher, held_out, context.load_images, vocabulary=context.vocabulary
            )
        )
        return {HELD_OUT_KL: found.token_kl, "held_out_top1": found.top1}

    return evaluate


def _inputs_hash(context: Context, student: LoadedModel, items: Sequence[TrainItem]) -> str:
    """Return the hash of everything that a stage trains on: models, data and responses."""
    teacher = context.teacher.fingerprint if context.teacher else None
    ids = [response.token_ids for item in items for response in item.responses]
    return hash_json([student.fingerprint, teacher, context.dataset.fingerprint, ids])


def _responses(
    context: Context, student: LoadedModel, authors: frozenset[Author], *, turn: Turn
) -> list[Response]:
    """Return the responses by the wanted authors.

    References come from labels, the teacher's are sampled once, the student's anew in every round (0 is the
    warm-up).
    """
    responses: list[Response] = []
    if "reference" in authors:
        responses += encode_references(
            context.examples,
            student.tokenizer,
            stop_id=student.stop_ids[0],
            fingerprint=student.fingerprint,
            image_token_ids=student.image_token_ids,
        )
    if "teacher" in authors:
        assert context.teacher is not None
        responses += _generate(context, context.teacher, "teacher", turn=Turn(round=0))
    if "student" in authors:
        if context.source is not None:
            context.source.release()
        responses += _generate(context, student, "student", turn=turn)
    return responses


def _name(author: Author, turn: Turn) -> str:
    """Return the name of the responses of one author; those of the student differ between rounds."""
    prefix = f"{turn.track}_" if turn.track else ""
    return f"{prefix}{author}_round_{turn.round}" if author == "student" else author


def cache_existing(context: Context, student: LoadedModel, authors: frozenset[Author]) -> list[str]:
    """Fill the caches of the teacher's responses and labels, as `authors` say, and of all stored rounds."""
    sets: list[tuple[str, Author, list[Response]]] = [
        (author, author, _responses(context, student, frozenset({author}), turn=Turn(round=0)))
        for author in sorted(authors - {"student"})
    ]
    rounds = (context.folder / "responses").glob("*student_round_*/manifest.json")
    for manifest in sorted(rounds) if "student" in authors else ():
        store = ResponseStore(manifest.parent)
        if store.is_complete:
            sets.append((manifest.parent.name, "student", store.read()))
    lines = []
    for name, author, responses in sets:
        items, _ = build_items(context.examples, responses, authors=frozenset({author}))
        filled = fill_cache(context.cache_plan(), items, name=name)
        size = f"{filled.num_bytes / 2**20:,.1f} MiB in {filled.folder}"
        lines.append(f"{name}: {len(filled.places):,} responses, {filled.num_tokens:,} tokens, {size}")
    if context.vision_cache is not None:
        context.vision_cache.flush()
    return lines


def _generate(context: Context, loaded: LoadedModel, author: Author, *, turn: Turn) -> list[Response]:
    settings, name = context.config.generate, _name(author, turn)
    # Every author and round draws its own random numbers.
    seed = int(hash_json([settings.sampling.seed, context.config.seed, author, turn.round])[:8], 16)
    with _stored_engine(context, loaded, author) as engine:
        return generate_responses(
            engine,
            context.examples,
            settings.sampling.model_copy(update={"seed": seed}),
            folder=context.folder / "responses" / name,
            author=author,
            round=turn.round,
            log=context.log,
            label=f"{name.replace('_', ' ')} responses",
        )


def _augmented(load_images: ImageLoader, augment: Augment) -> ImageLoader:
    # The trainer seeds torch at every step, so the draws are a function of the step.
    def load(example: Example) -> list[Image.Image]:
        return [augment(image, seed=int(torch.randint(2**31, ()))) for image in load_images(example)]

    return load


def measure_student(context: Context, label: str, loaded: LoadedModel) -> list[Measured]:
    """Return the row of one model for the summary: at most one, none where the config evaluates nothing."""
    config = context.config.evaluate
    if config is None:
        return []
    folder = context.folder / "eval" / label.replace(" ", "_")
    images = ImageStore(context.folder / "eval" / "images")
    whole = context.source.whole if context.source and loaded is context.teacher else None
    results, shuffled = score_both_ways(
        config, loaded, label=label, folder=folder, images=images, log=context.log, whole=whole
    )
    agreement: dict[str, float | None] = {}
    if context.held_out is not None and context.teacher is not None and loaded is not context.teacher:
        agreement = compare_with_teacher(
            config,
            loaded,
            context.teacher,
            context.held_out,
            context.load_images,
            vocabulary=context.vocabulary,
            folder=folder,
            log=context.log,
            whole=context.source.whole if context.source else None,
        )
    if context.source is not None:
        context.source.release()
    return [
        Measured(label=label, fingerprint=loaded.fingerprint, results=results, shuffled=shuffled, **agreement)
    ]
