"""The run: data, teacher responses, warm-up, rounds of student responses and training, evaluation, summary.

Every stage skips itself when its inputs and config are unchanged and continues when it was interrupted; this
file only puts them in order. What a stage does is in data/, generation/, training/ and evaluation/.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image

from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.adapters.catalog import load_model, save_model
from vlm_distill.adapters.llava import build_llava
from vlm_distill.adapters.pair import PairReport, load_skeleton, pair_report, share_stops
from vlm_distill.config import dump_yaml
from vlm_distill.data.augment import Augment
from vlm_distill.data.images import ImageStore
from vlm_distill.data.recipe import Dataset, Recipe, load_recipe, prepare
from vlm_distill.evaluation.task import load_suite, load_task
from vlm_distill.files import hash_json, read_json, write_json
from vlm_distill.generation.references import encode_references
from vlm_distill.generation.run import generate_responses
from vlm_distill.generation.transformers_engine import TransformersEngine
from vlm_distill.losses import Objective, ObjectiveConfig
from vlm_distill.measure import HeldOut, Measured, compare_with_teacher, hold_out, score_both_ways
from vlm_distill.records import Author, Example, Response
from vlm_distill.run_config import EvaluateConfig, ModelConfig, RunConfig
from vlm_distill.run_folder import open_folder, print_log, write_provenance
from vlm_distill.summary import summarise
from vlm_distill.training.config import TrainConfig
from vlm_distill.training.items import ImageLoader, TrainItem, build_items
from vlm_distill.training.run import Trained, finished, train
from vlm_distill.training.trainer import Stage

Log = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What every stage of one run shares. `examples` are the training prompts after `data.limit`."""

    config: RunConfig
    folder: Path
    log: Log
    dataset: Dataset
    examples: list[Example]
    teacher: LoadedModel | None
    pair: PairReport | None
    held_out: HeldOut | None

    def load_images(self, example: Example) -> list[Image.Image]:
        return [self.dataset.images.load(image) for image in example.images]


def run(config: RunConfig, *, log: Log = print_log) -> str:
    """Run every stage that is not done yet; return the summary table, also printed and put in the folder."""
    # What is wrong in the config shows here, before anything is written.
    _inspect(config)
    with open_folder(config) as folder:
        _announce(config, folder, log)
        dataset = prepare(load_recipe(config.data.recipe, config.data.overrides), folder / "data", log)
        examples = _draw(dataset.train, config, log=log)
        teacher = load(config.teacher, config.device) if config.teacher else None
        first, pair = _first_student(config, folder, teacher, texts=_texts(examples), log=log)
        context = Context(
            config=config,
            folder=folder,
            log=log,
            dataset=dataset,
            examples=examples,
            teacher=teacher,
            pair=pair,
            held_out=_hold_out(config, dataset, teacher, folder=folder, log=log),
        )
        student = _load_student(context, first)
        facts = {"seed": config.seed, "data": dataset.fingerprint, "data_counts": dataset.counts}
        facts |= {"teacher": teacher.fingerprint if teacher else None, "student": student.fingerprint}
        write_provenance(folder, facts)
        summary = summarise(_stages(context, first), folder=folder)
        print(summary)
        return summary


def check(config: RunConfig) -> str:
    """Return the resolved run and the pair report; reads configs, tokenizers, processors and no weights."""
    recipe, tasks, student, pair = _inspect(config)
    lines = [dump_yaml(config.model_dump(mode="json")).rstrip()]
    lines.append(f"data: recipe {recipe.name} with {len(recipe.sources)} source(s)")
    lines.append(f"evaluation: {', '.join(tasks) or 'none'}")
    lines += [f"pair: {line}" for line in pair.lines()] if pair else []
    about = " (more with the tokens that the data will give it)" if _trains_tokenizer(config) else ""
    lines.append(f"student: {_millions(student)} parameters{about}; the run writes to {config.folder}")
    return "\n".join(lines)


def _inspect(config: RunConfig) -> tuple[Recipe, list[str], LoadedModel, PairReport | None]:
    """Return recipe, task names, the student without weights and the pair report, or raise what is wrong."""
    recipe = load_recipe(config.data.recipe, config.data.overrides)
    suite = load_suite(config.evaluate.suite) if config.evaluate else None
    tasks = [load_task(entry.task).name for entry in suite.tasks] if suite else []
    teacher = None
    if config.teacher:
        teacher = load_skeleton(config.teacher.model, trust_remote_code=config.teacher.trust_remote_code)
    if config.student.build:
        with torch.device("meta"):
            student = build_llava(config.student.build, teacher=teacher, texts=[], seed=config.seed)
    else:
        assert config.student.model is not None
        student = load_skeleton(config.student.model, trust_remote_code=config.student.trust_remote_code)
    return recipe, tasks, student, pair_report(teacher, student) if teacher else None


def _trains_tokenizer(config: RunConfig) -> bool:
    return config.student.build is not None and not isinstance(config.student.build.tokenizer, str)


def evaluate_model(
    config: ModelConfig, evaluate: EvaluateConfig, *, folder: Path, device: str, log: Log = print_log
) -> str:
    """Score a model on a suite outside a run; return the table, which is also written below `folder`."""
    load_suite(evaluate.suite)
    loaded = load(config, device)
    images = ImageStore(folder / "images")
    results, shuffled = score_both_ways(
        evaluate, loaded, label=config.model, folder=folder, images=images, log=log
    )
    one = Measured(label=config.model, fingerprint=loaded.fingerprint, results=results, shuffled=shuffled)
    return summarise([one], folder=folder)


def load(config: ModelConfig, device: str) -> LoadedModel:
    """Load the model that a config names; `device` "auto" is the accelerator of this machine, or the CPU."""
    options = LoadOptions(
        dtype=config.dtype, device=pick_device(device), trust_remote_code=config.trust_remote_code
    )
    return load_model(config.model, options)


def pick_device(device: str) -> str:
    if device != "auto":
        return device
    # The current accelerator is that of the torch build, whether or not this machine has one.
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator.type if accelerator is not None else "cpu"


def _announce(config: RunConfig, folder: Path, log: Log) -> None:
    log(f"run {config.name}: writes to {folder}; safe to interrupt, the same command continues")
    stages = ["data"]
    if config.warmup:
        stages.append(f"warm-up ({config.warmup.objective.kind})")
    if config.rounds:
        assert config.objective is not None
        stages.append(f"{config.rounds} round(s) of student responses and training ({config.objective.kind})")
    if config.control:
        stages.append(f"control {config.control.name} with as many trained tokens")
    log(
        "stages: "
        + ", ".join(stages)
        + (f"; each scored on suite {config.evaluate.suite}" if config.evaluate else "")
    )


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
    config: RunConfig, folder: Path, teacher: LoadedModel | None, *, texts: Sequence[str], log: Log
) -> tuple[str, PairReport | None]:
    """Return the name of the student before any training, and how it fits the teacher.

    One that is built from parts is kept in the folder, and built again where its parts changed.
    """
    build, name = config.student.build, config.student.model
    if build is not None:
        name, record = str(folder / "student_at_random"), folder / "student_at_random.json"
        parts = [build.model_dump(mode="json"), config.seed, teacher.fingerprint if teacher else None]
        key = hash_json([*parts, list(texts) if _trains_tokenizer(config) else None])
        if not record.is_file() or read_json(record)["key"] != key:
            built = build_llava(build, teacher=teacher, texts=texts, seed=config.seed)
            save_model(built, Path(name))
            write_json(record, {"key": key})
            log(f"student: built from parts, {_millions(built)} parameters, saved to {name}")
    assert name is not None
    if teacher is None:
        return name, None
    skeleton = load_skeleton(name, trust_remote_code=config.student.trust_remote_code)
    report = pair_report(teacher, skeleton)
    for line in report.lines():
        log(f"pair: {line}")
    return name, report


def _millions(loaded: LoadedModel) -> str:
    return f"{sum(parameter.numel() for parameter in loaded.model.parameters()) / 1e6:.2f} M"


def _load_student(context: Context, name: str | Path) -> LoadedModel:
    """Load a student from disk, so that what is measured and trained on is exactly what was saved.

    It is loaded in float32, in which its weights are updated, and stops where its teacher stops.
    """
    settings = context.config.student
    model = ModelConfig(model=str(name), trust_remote_code=settings.trust_remote_code)
    student = load(model, context.config.device)
    return share_stops(student, context.teacher) if context.teacher else student


def _hold_out(
    config: RunConfig, dataset: Dataset, teacher: LoadedModel | None, *, folder: Path, log: Log
) -> HeldOut | None:
    if config.evaluate is None or teacher is None:
        return None
    return hold_out(
        config.evaluate,
        teacher,
        dataset.held_out,
        lambda example: [dataset.images.load(image) for image in example.images],
        folder=folder / "held_out",
        log=log,
    )


def _stages(context: Context, first: str) -> list[Measured]:
    """Run warm-up, rounds and control; return what was measured, the teacher first."""
    config = context.config
    measured: list[Measured] = []
    if context.teacher is not None:
        measured += _measure(context, "teacher", context.teacher)
    measured += _measure(
        context, "random" if config.student.build else "student", _load_student(context, first)
    )
    start: str | Path = first
    if config.warmup:
        warmup = config.warmup
        trained = _train(
            context,
            start,
            "warmup",
            warmup.train,
            warmup.objective,
            warmup.objective.build(),
            round=0,
            augment=warmup.augment,
        )
        start = trained.model
        measured += _measure(context, "warm-up", _load_student(context, start))
    return measured + _rounds(context, start)


def _rounds(context: Context, start: str | Path) -> list[Measured]:
    """Run the rounds and the control, both from `start`."""
    config = context.config
    measured: list[Measured] = []
    if not config.rounds:
        return measured
    assert config.train is not None
    assert config.objective is not None
    # One objective for all rounds: its curricula remember the first one.
    student, tokens, objective = start, 0, config.objective.build()
    for number in range(1, config.rounds + 1):
        label = f"round {number}"
        trained = _train(context, student, label, config.train, config.objective, objective, round=number)
        objective.load_state_dict(trained.objective)
        student, tokens = trained.model, tokens + trained.tokens
        if number == config.rounds or (config.evaluate and config.evaluate.every_round):
            measured += _measure(context, label, _load_student(context, student))
    if config.control:
        name, method = config.control.name, config.control.objective
        budget = config.train.model_copy(update={"steps": None, "epochs": None, "tokens": tokens})
        trained = _train(context, start, name, budget, method, method.build(), round=1)
        measured += _measure(context, name, _load_student(context, trained.model))
    return measured


def _measure(context: Context, label: str, loaded: LoadedModel) -> list[Measured]:
    """Return the row of one model for the summary: at most one, none where the config evaluates nothing."""
    config = context.config.evaluate
    if config is None:
        return []
    folder = context.folder / "eval" / label.replace(" ", "_")
    images = ImageStore(context.folder / "eval" / "images")
    results, shuffled = score_both_ways(
        config, loaded, label=label, folder=folder, images=images, log=context.log
    )
    agreement: dict[str, float] = {}
    if context.held_out is not None and context.teacher is not None and loaded is not context.teacher:
        agreement = compare_with_teacher(
            config,
            loaded,
            context.teacher,
            context.held_out,
            context.load_images,
            vocabulary=context.pair.vocabulary if context.pair else slice(None),
            folder=folder,
            log=context.log,
        )
    return [
        Measured(label=label, fingerprint=loaded.fingerprint, results=results, shuffled=shuffled, **agreement)
    ]


def _train(
    context: Context,
    start: str | Path,
    label: str,
    config: TrainConfig,
    objective_config: ObjectiveConfig,
    objective: Objective,
    *,
    round: int,
    augment: Augment | None = None,
) -> Trained:
    """Run one training stage with its responses, or return what it left when it is done already."""
    student = _load_student(context, start)
    responses = _responses(context, student, objective.authors, round=round)
    items, missing = build_items(context.examples, responses, authors=objective.authors)
    if missing:
        prompts = f"{missing:,} of {len(context.examples):,} prompts"
        context.log(f"{label}: {prompts} have no usable response and are left out")
    seed = context.config.seed * 1009 + max(1, round)
    settings = [asdict(objective_config), augment.model_dump() if augment else None, round, seed]
    stage = Stage(
        student=student,
        teacher=context.teacher,
        vocabulary=context.pair.vocabulary if context.pair else slice(None),
        objective=objective,
        items=items,
        load_images=_augmented(context.load_images, augment) if augment else context.load_images,
        folder=context.folder / label.replace(" ", "_"),
        key=hash_json([_inputs_hash(context, student, items), config.decisive(), settings]),
        label=label,
        seed=seed,
        round=max(1, round),
        num_rounds=max(1, context.config.rounds),
    )
    done = finished(stage.folder, key=stage.key)
    if done:
        context.log(f"{label}: unchanged, the trained student in {done.model} is used")
        return done
    return train(config, stage, log=context.log)


def _inputs_hash(context: Context, student: LoadedModel, items: Sequence[TrainItem]) -> str:
    """Return the hash of everything that a stage trains on: models, data and responses."""
    teacher = context.teacher.fingerprint if context.teacher else None
    ids = [response.token_ids for item in items for response in item.responses]
    return hash_json([student.fingerprint, teacher, context.dataset.fingerprint, ids])


def _responses(
    context: Context, student: LoadedModel, authors: frozenset[Author], *, round: int
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
            placeholder_ids=student.placeholder_ids,
        )
    if "teacher" in authors:
        assert context.teacher is not None
        responses += _generate(context, context.teacher, "teacher", round=0)
    if "student" in authors:
        responses += _generate(context, student, "student", round=round)
    return responses


def _generate(context: Context, loaded: LoadedModel, author: Author, *, round: int) -> list[Response]:
    settings, pair = context.config.generate, context.pair
    name = author if author == "teacher" else f"{author}_round_{round}"
    # Every author and round draws its own random numbers.
    seed = int(hash_json([settings.sampling.seed, context.config.seed, author, round])[:8], 16)
    engine = TransformersEngine(
        loaded=loaded,
        load_images=context.load_images,
        batch_size=settings.engine.batch_size,
        forbidden_ids=pair.unshared_ids if pair else (),
    )
    return generate_responses(
        engine,
        context.examples,
        settings.sampling.model_copy(update={"seed": seed}),
        folder=context.folder / "responses" / name,
        author=author,
        round=round,
        log=context.log,
        label=f"{name.replace('_', ' ')} responses",
    )


def _augmented(load_images: ImageLoader, augment: Augment) -> ImageLoader:
    # The trainer seeds torch at every step, so the draws are a function of the step.
    def load(example: Example) -> list[Image.Image]:
        return [augment(image, seed=int(torch.randint(2**31, ()))) for image in load_images(example)]

    return load
