"""The run: data, teacher responses, warm-up, rounds of student responses and training, evaluation, summary.

Every stage skips itself when its inputs and config are unchanged and continues when it was interrupted; this
file only puts them in order. What a stage does is in data/, generation/, training/ and evaluation/.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.alignment.pair import PairReport, pair_report
from vlm_distill.batches import TrainItem
from vlm_distill.data.images import ImageStore
from vlm_distill.data.recipe import open_dataset, prepare
from vlm_distill.errors import ConfigError
from vlm_distill.evaluation.task import load_suite
from vlm_distill.files import hash_json, read_json, write_json
from vlm_distill.generation.vllm_engine import require_vllm
from vlm_distill.losses import ObjectiveConfig
from vlm_distill.models.feature_store import FeatureStore, VisionCacheConfig
from vlm_distill.models.save import save_model
from vlm_distill.models.skeleton import load_skeleton
from vlm_distill.models.vision_cache import why_not_cached, with_vision_cache
from vlm_distill.processes import is_main, on_main, start
from vlm_distill.progress import Log
from vlm_distill.records import Example
from vlm_distill.runs.check import inspect, millions, recipe_of, trains_tokenizer
from vlm_distill.runs.config import VISION_FEATURES, EvaluateConfig, ModelConfig, RunConfig, read_by_teacher
from vlm_distill.runs.context import Context, Turn, load_student
from vlm_distill.runs.evaluator import HeldOut, Measured, hold_out, score_both_ways
from vlm_distill.runs.folder import open_folder, print_log, write_provenance
from vlm_distill.runs.stages import cache_existing, measure_student, train_student
from vlm_distill.runs.summary import summarise
from vlm_distill.runs.teacher import TeacherModel, load
from vlm_distill.students.build import build_llava
from vlm_distill.students.pruning import shrink_student
from vlm_distill.teacher_cache.fill import fill_cache
from vlm_distill.teacher_cache.store import CacheConfig, CacheReader
from vlm_distill.training.config import TrainConfig


def run(config: RunConfig, *, log: Log = print_log) -> str:
    """Run every stage that is not done yet; return the summary table, also printed and put in the folder."""
    start(config.device)
    # What is wrong in the config or missing on this machine shows here, before anything is written.
    _inspect(config)
    with open_folder(config) as folder:
        _announce(config, folder, log)
        context, first = _prepare(config, folder, log=log)
        measured = _stages(context, first)
        features = context.vision_cache
        if features and features.num_computed + features.num_found:
            log(f"vision cache: {features}")
        summary = on_main(lambda: summarise(measured, folder=folder))
        if is_main():
            print(summary)
    return summary


def fill_caches(config: RunConfig, *, log: Log = print_log) -> list[str]:
    """Compute the teacher cache of the responses that exist and of the teacher's own; return and print it.

    The teacher's responses are sampled first where they are missing. A later `run` in the same folder uses
    all of it.

    Raises:
        ConfigError: the config has no cache, or nothing in it reads the teacher.
    """
    if config.cache is None:
        raise ConfigError("cache: not set; add `cache: {tier: hidden}` to the config, or cache.tier=hidden")
    start(config.device)
    _inspect(config)
    authors = read_by_teacher(config)
    if not authors:
        raise ConfigError("cache: no objective of this run reads the teacher; nothing to cache")
    with open_folder(config) as folder:
        where = folder / "cache"
        log(f"cache {config.name}: writes to {where}; safe to interrupt, the same command continues")
        context, first = _prepare(config, folder, log=log)
        lines = cache_existing(context, load_student(context, first), authors)
        if is_main():
            print("\n".join(lines))
    return lines


def _inspect(config: RunConfig) -> None:
    inspect(config)
    if config.generate.engine.kind == "vllm":
        require_vllm()


def evaluate_model(
    config: ModelConfig, evaluate: EvaluateConfig, *, folder: Path, device: str, log: Log = print_log
) -> str:
    """Score a model on a suite outside a run; return the table, which is also written below `folder`."""
    assert evaluate.suite is not None
    start(device)
    load_suite(evaluate.suite)
    # Questions share images; there is no run folder to keep features in.
    store = FeatureStore(VisionCacheConfig(), folder=None, log=log)
    loaded = with_vision_cache(load(config, device), store)
    images = ImageStore(folder / "images")
    results, shuffled = score_both_ways(
        evaluate, loaded, label=config.model, folder=folder, images=images, log=log
    )
    one = Measured(label=config.model, fingerprint=loaded.fingerprint, results=results, shuffled=shuffled)
    return on_main(lambda: summarise([one], folder=folder))


def _prepare(config: RunConfig, folder: Path, *, log: Log) -> tuple[Context, str]:
    """Return what all stages share, and the name of the student before any training."""
    # One process writes, the others read what it wrote.
    on_main(lambda: prepare(recipe_of(config.data), folder / "data", log))
    dataset = open_dataset(folder / "data")
    examples = _draw(dataset.train, config, log=log)
    features = _vision_cache(config, folder, log)
    source = None
    if config.teacher:
        source = TeacherModel(
            config.teacher, device=config.device, cache=config.cache, vision_cache=features, log=log
        )
    first, pair = _first_student(config, folder, source, texts=_texts(examples), log=log)
    context = Context(
        config=config,
        folder=folder,
        log=log,
        dataset=dataset,
        examples=examples,
        teacher=source.loaded if source else None,
        pair=pair,
        held_out=None,
        vision_cache=features,
        source=source,
    )
    context = replace(context, held_out=_hold_out(context))
    student = load_student(context, first)
    _say_what_is_cached(context, student)
    facts = {"seed": config.seed, "data": dataset.fingerprint, "data_counts": dataset.counts}
    facts |= {
        "teacher": source.loaded.fingerprint if source else None,
        "student": student.fingerprint,
    }
    write_provenance(folder, facts)
    return context, first


def _announce(config: RunConfig, folder: Path, log: Log) -> None:
    log(f"run {config.name}: writes to {folder}; safe to interrupt, the same command continues")
    stages = ["data"]
    if config.warmup:
        stages.append(f"warm-up ({config.warmup.objective.kind})")
    if config.rounds:
        assert config.objective is not None
        stages.append(f"{config.rounds} round(s) of student responses and training ({config.objective.kind})")
    if config.controls:
        names = ", ".join(control.name for control in config.controls)
        stages.append(f"controls with as many trained tokens ({names})")
    if config.cache:
        log(
            f"teacher: what it says about stored responses is cached before every stage (tier "
            f"{config.cache.tier}); training keeps no more of it than its output layer"
        )
    suite = config.evaluate.suite if config.evaluate else None
    log("stages: " + ", ".join(stages) + (f"; each scored on suite {suite}" if suite else ""))


def _vision_cache(config: RunConfig, folder: Path, log: Log) -> FeatureStore | None:
    cache = config.vision_cache
    if not cache.memory_gib and not cache.disk_gib:
        return None
    return FeatureStore(cache, folder=folder / VISION_FEATURES, log=log)


def _say_what_is_cached(context: Context, student: LoadedModel) -> None:
    for name, loaded in (("teacher", context.teacher), ("student", student)):
        if context.vision_cache and loaded and "vision" in loaded.adapter.parts:
            reason = why_not_cached(loaded)
            if reason:
                context.log(f"vision cache: the {name} encodes every image again: {reason}")


def _draw(examples: Sequence[Example], config: RunConfig, *, log: Log) -> list[Example]:
    """Return `data.limit` of the training examples, drawn by the hash of their ids and kept in order."""
    limit = config.data.limit
    if limit is None or limit >= len(examples):
        return list(examples)
    ranked = sorted(examples, key=lambda example: hash_json([config.seed, example.id]))
    drawn = {example.id for example in ranked[:limit]}
    log(f"data: {limit:,} of {len(examples):,} training prompts are used (data.limit)")
    return [example for example in examples if example.id in drawn]


def _texts(examples: Sequence[Example]) -> list[str]:
    """Return the distinct texts of prompts and references, on which a new tokenizer is trained."""
    parts = (part for example in examples for message in example.messages for part in message.content)
    references = (reference for example in examples for reference in example.references)
    return sorted({*(part.text for part in parts if part.type == "text"), *references})


def _first_student(
    config: RunConfig, folder: Path, teacher: TeacherModel | None, *, texts: Sequence[str], log: Log
) -> tuple[str, PairReport | None]:
    """Return the name of the student before any training, and how it fits the teacher.

    One that is made from parts is kept in the folder, and built again where its parts changed.
    """
    name = config.student.model
    if name is None:
        name = str(folder / "student_at_start")
        on_main(lambda: _keep_student(config, folder, teacher, texts=texts, log=log))
    assert name is not None
    if teacher is None:
        return name, None
    skeleton = load_skeleton(name, trust_remote_code=config.student.trust_remote_code)
    report = pair_report(teacher.loaded, skeleton)
    for line in report.lines():
        log(f"pair: {line}")
    return name, report


def _keep_student(
    config: RunConfig, folder: Path, teacher: TeacherModel | None, *, texts: Sequence[str], log: Log
) -> None:
    """Make the student and save it, unless it is there already and its parts are unchanged."""
    name, record = folder / "student_at_start", folder / "student_at_start.json"
    read = list(texts) if trains_tokenizer(config) else None
    fingerprint = teacher.loaded.fingerprint if teacher else None
    key = hash_json([config.student.model_dump(mode="json"), config.seed, fingerprint, read])
    if record.is_file() and read_json(record)["key"] == key:
        return
    made = _make_student(config, teacher.body() if teacher else None, texts=texts)
    save_model(made, name)
    write_json(record, {"key": key})
    log(f"student: made from parts, {millions(made)} parameters, saved to {name}")


def _make_student(config: RunConfig, teacher: LoadedModel | None, *, texts: Sequence[str]) -> LoadedModel:
    build, shrink = config.student.build, config.student.shrink
    if build is not None:
        return build_llava(build, teacher=teacher, texts=texts, seed=config.seed)
    assert shrink is not None
    assert teacher is not None
    return shrink_student(shrink, teacher=teacher)


def _hold_out(context: Context) -> HeldOut | None:
    config, source = context.config, context.source
    if config.evaluate is None or source is None:
        return None
    found = hold_out(
        config.evaluate,
        source.loaded,
        context.dataset.held_out,
        context.load_images,
        folder=context.folder / "held_out",
        log=context.log,
        whole=source.whole,
    )
    if found is None or config.cache is None:
        return found
    # Agreement compares whole distributions, whatever tier is trained on.
    exact = CacheConfig(batch_size=config.cache.batch_size)
    answered = [one for one in found.examples if one.id in found.responses]
    items = [TrainItem(example=one, responses=(found.responses[one.id],)) for one in answered]
    store = fill_cache(context.cache_plan(exact), items, name="held_out")
    return replace(found, cache=CacheReader([store]))


def _stages(context: Context, first: str) -> list[Measured]:
    """Run warm-up, rounds and controls; return what was measured, the teacher first."""
    config = context.config
    measured: list[Measured] = []
    if context.teacher is not None:
        measured += measure_student(context, "teacher", context.teacher)
    measured += measure_student(context, _start_label(config), load_student(context, first))
    start: str | Path = first
    if config.warmup:
        warmup = config.warmup
        trained = train_student(
            context,
            start,
            "warmup",
            warmup.train,
            warmup.objective,
            warmup.objective.build(),
            turn=Turn(round=0),
            augment=warmup.augment,
        )
        start = trained.model
        measured += measure_student(context, "warm-up", load_student(context, start))
    return measured + _rounds(context, start)


def _start_label(config: RunConfig) -> str:
    if config.student.build:
        return "random"
    return "shrunk" if config.student.shrink else "student"


def _rounds(context: Context, start: str | Path) -> list[Measured]:
    """Run the rounds and the controls, all from `start`."""
    config = context.config
    if not config.rounds:
        return []
    assert config.train is not None
    assert config.objective is not None
    measured, tokens = _track(
        context,
        start,
        config.objective,
        [config.train] * config.rounds,
        every_round=config.evaluate is not None and config.evaluate.every_round,
    )
    for control in config.controls:
        share = {"steps": None, "epochs": None, "tokens": math.ceil(tokens / control.rounds)}
        own = {"learning_rate": control.learning_rate, "batch_size": control.batch_size}
        changed = {name: value for name, value in own.items() if value is not None}
        part = config.train.model_copy(update={**share, **changed})
        measured += _track(context, start, control.objective, [part] * control.rounds, name=control.name)[0]
    return measured


def _track(
    context: Context,
    start: str | Path,
    objective_config: ObjectiveConfig,
    trains: Sequence[TrainConfig],
    *,
    name: str = "",
    every_round: bool = False,
) -> tuple[list[Measured], int]:
    """Train from `start` with one objective, a round per config; return what was measured and all tokens.

    `name` is that of a control, empty for the rounds of the run itself. The last round is always measured.
    """
    measured: list[Measured] = []
    # One objective for all rounds: its curricula remember the first one.
    student, tokens, objective = start, 0, objective_config.build()
    for number, train in enumerate(trains, start=1):
        turn = Turn(round=number, num_rounds=len(trains), track=name)
        trained = train_student(context, student, turn.label, train, objective_config, objective, turn=turn)
        objective.load_state_dict(trained.objective)
        student, tokens = trained.model, tokens + trained.tokens
        if every_round or number == len(trains):
            label = name if name and number == len(trains) else turn.label
            measured += measure_student(context, label, load_student(context, student))
    return measured, tokens
