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
from vlm_distill.adapters.pair import load_skeleton, pair_report
from vlm_distill.config import dump_yaml
from vlm_distill.data.augment import Augment
from vlm_distill.data.images import ImageStore
from vlm_distill.data.recipe import Dataset, load_recipe, prepare
from vlm_distill.evaluation.task import load_suite, load_task
from vlm_distill.files import hash_json
from vlm_distill.generation.references import encode_references
from vlm_distill.generation.run import generate_responses
from vlm_distill.generation.transformers_engine import TransformersEngine
from vlm_distill.losses import Objective, ObjectiveConfig
from vlm_distill.measure import HeldOut, Measured, compare_with_teacher, hold_out, score_both_ways
from vlm_distill.records import Author, Example, Response
from vlm_distill.run_config import EvaluateConfig, ModelConfig, RunConfig, StudentConfig
from vlm_distill.run_folder import open_folder, print_log, write_provenance
from vlm_distill.summary import summarise
from vlm_distill.training.config import TrainConfig
from vlm_distill.training.items import ImageLoader, build_items
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
    vocabulary: slice
    held_out: HeldOut | None

    def load_images(self, example: Example) -> list[Image.Image]:
        return [self.dataset.images.load(image) for image in example.images]


def run(config: RunConfig, *, log: Log = print_log) -> str:
    """Run every stage that is not done yet; return the summary table, also printed and put in the folder."""
    with open_folder(config) as folder:
        _announce(config, folder, log)
        dataset = prepare(load_recipe(config.data.recipe, config.data.overrides), folder / "data", log)
        examples = dataset.train[: config.data.limit]
        teacher = load(config.teacher, config.device) if config.teacher else None
        first = _first_student(config, folder, teacher, texts=_texts(examples), log=log)
        context = Context(
            config=config,
            folder=folder,
            log=log,
            dataset=dataset,
            examples=examples,
            teacher=teacher,
            vocabulary=_check_pair(first, teacher, log=log),
            held_out=_hold_out(config, dataset, teacher, folder=folder, log=log),
        )
        facts = {
            "seed": config.seed,
            "data": dataset.fingerprint,
            "data_counts": dataset.counts,
            "student": first.fingerprint,
        }
        write_provenance(folder, facts | {"teacher": teacher.fingerprint if teacher else None})
        measured = _stages(context, first)
        summary = summarise(measured, folder=folder)
        print(summary)
        return summary


def check(config: RunConfig) -> str:
    """Return the resolved run and the pair report; reads configs, tokenizers, processors and no weights."""
    recipe = load_recipe(config.data.recipe, config.data.overrides)
    tasks = (
        [load_task(entry.task).name for entry in load_suite(config.evaluate.suite).tasks]
        if config.evaluate
        else []
    )
    lines = [dump_yaml(config.model_dump(mode="json")).rstrip()]
    lines.append(f"data: recipe {recipe.name} with {len(recipe.sources)} source(s)")
    lines.append(f"evaluation: {', '.join(tasks) or 'none'}")
    teacher = None
    if config.teacher:
        teacher = load_skeleton(config.teacher.model, trust_remote_code=config.teacher.trust_remote_code)
    if config.student.build:
        with torch.device("meta"):
            student = build_llava(config.student.build, teacher=teacher, texts=[], seed=config.seed)
    else:
        assert config.student.model is not None
        student = load_skeleton(config.student.model, trust_remote_code=config.student.trust_remote_code)
    lines += [f"pair: {line}" for line in pair_report(teacher, student).lines()] if teacher else []
    lines.append(f"student: {_millions(student)} parameters; the run writes to {config.folder}")
    return "\n".join(lines)


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


def load(config: ModelConfig | StudentConfig, device: str) -> LoadedModel:
    """Load the model that a config names; `device` "auto" is the first accelerator, or the CPU."""
    assert config.model is not None
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


def _texts(examples: Sequence[Example]) -> list[str]:
    """Return the distinct texts of prompts and references, on which a new tokenizer is trained."""
    texts = (
        part.text
        for example in examples
        for message in example.messages
        for part in message.content
        if part.type == "text"
    )
    references = (reference for example in examples for reference in example.references)
    return sorted({*texts, *references})


def _first_student(
    config: RunConfig, folder: Path, teacher: LoadedModel | None, *, texts: Sequence[str], log: Log
) -> LoadedModel:
    """Return the student before any training; one made of parts is built once and kept in the folder."""
    student = config.student
    if student.build is None:
        return load(student, config.device)
    path = folder / "student_at_random"
    if not (path / "config.json").is_file():
        built = build_llava(student.build, teacher=teacher, texts=texts, seed=config.seed)
        save_model(built, path)
        log(f"student: built from parts, {_millions(built)} parameters, saved to {path}")
    return load(student.model_copy(update={"model": str(path)}), config.device)


def _millions(loaded: LoadedModel) -> str:
    return f"{sum(parameter.numel() for parameter in loaded.model.parameters()) / 1e6:.2f} M"


def _check_pair(student: LoadedModel, teacher: LoadedModel | None, *, log: Log) -> slice:
    if teacher is None:
        return slice(None)
    report = pair_report(teacher, student)
    for line in report.lines():
        log(f"pair: {line}")
    return report.vocabulary


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


def _stages(context: Context, first: LoadedModel) -> list[Measured]:
    """Run warm-up, rounds and control; return what was measured, the teacher first."""
    config, teacher = context.config, context.teacher
    measured: list[Measured] = []
    if teacher is not None:
        measured += _measure(context, "teacher", teacher)
    measured += _measure(context, "random" if config.student.build else "student", first)
    student = first
    if config.warmup:
        warmup = config.warmup
        trained = _train(
            context,
            student,
            "warmup",
            warmup.train,
            warmup.objective,
            warmup.objective.build(),
            augment=warmup.augment,
        )
        student = _reload(context, trained.model)
        measured += _measure(context, "warm-up", student)
    if config.rounds:
        measured += _rounds(context, student)
    return measured


def _rounds(context: Context, start: LoadedModel) -> list[Measured]:
    """Run the rounds and the control, both from `start`."""
    config = context.config
    assert config.train is not None
    assert config.objective is not None
    measured: list[Measured] = []
    # One objective for all rounds: its curricula remember the first one.
    student, tokens, objective = start, 0, config.objective.build()
    for number in range(1, config.rounds + 1):
        label = f"round {number}"
        trained = _train(context, student, label, config.train, config.objective, objective, round=number)
        objective.load_state_dict(trained.objective)
        student, tokens = _reload(context, trained.model), tokens + trained.tokens
        if number == config.rounds or (config.evaluate and config.evaluate.every_round):
            measured += _measure(context, label, student)
    if config.control:
        name, method = config.control.name, config.control.objective
        budget = config.train.model_copy(update={"steps": None, "epochs": None, "tokens": tokens})
        trained = _train(context, _reload(context, Path(start.path)), name, budget, method, method.build())
        measured += _measure(context, name, _reload(context, trained.model))
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
            vocabulary=context.vocabulary,
            folder=folder,
            log=context.log,
        )
    return [
        Measured(label=label, fingerprint=loaded.fingerprint, results=results, shuffled=shuffled, **agreement)
    ]


def _reload(context: Context, path: Path) -> LoadedModel:
    """Load a trained student from disk: what is measured and trained on is exactly what was saved."""
    return load(context.config.student.model_copy(update={"model": str(path)}), context.config.device)


def _train(
    context: Context,
    student: LoadedModel,
    label: str,
    config: TrainConfig,
    objective_config: ObjectiveConfig,
    objective: Objective,
    *,
    round: int = 1,
    augment: Augment | None = None,
) -> Trained:
    """Run one training stage with its responses, or return what it left when it is done already."""
    run_config = context.config
    folder = context.folder / label.replace(" ", "_")
    responses = _responses(context, student, objective.authors, round=round)
    items, missing = build_items(context.examples, responses, authors=objective.authors)
    if missing:
        context.log(
            f"{label}: {missing:,} of {len(context.examples):,} prompts have no usable response "
            "and are left out"
        )
    fingerprints = [
        student.fingerprint,
        context.teacher.fingerprint if context.teacher else None,
        context.dataset.fingerprint,
    ]
    ids = [response.token_ids for item in items for response in item.responses]
    settings = [
        config.model_dump(mode="json"),
        asdict(objective_config),
        augment.model_dump() if augment else None,
    ]
    key = hash_json([fingerprints, hash_json(ids), settings, run_config.seed, round, run_config.rounds])
    done = finished(folder, key=key)
    if done:
        context.log(f"{label}: unchanged, the trained student in {done.model} is used")
        return done
    stage = Stage(
        student=student,
        teacher=context.teacher,
        vocabulary=context.vocabulary,
        objective=objective,
        items=items,
        load_images=_augmented(context.load_images, augment) if augment else context.load_images,
        folder=folder,
        key=key,
        label=label,
        seed=run_config.seed * 1009 + round,
        round=round,
        num_rounds=max(1, run_config.rounds),
    )
    return train(config, stage, log=context.log)


def _responses(
    context: Context, student: LoadedModel, authors: frozenset[Author], *, round: int
) -> list[Response]:
    """Return the wanted responses: references, the teacher's once, the student's anew every round."""
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
    settings = context.config.generate
    name = author if author == "teacher" else f"{author}_round_{round}"
    return generate_responses(
        TransformersEngine(
            loaded=loaded, load_images=context.load_images, batch_size=settings.engine.batch_size
        ),
        context.examples,
        settings.sampling.model_copy(update={"seed": settings.sampling.seed + context.config.seed}),
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
