"""The run: data, teacher responses, warm-up, rounds of student responses and training, evaluation, summary.

Every stage skips itself when its inputs and config are unchanged and continues when it was interrupted; this
file only puts them in order. What a stage does is in data/, generation/, training/ and evaluation/.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.catalog import save_model
from vlm_distill.adapters.llava import build_llava
from vlm_distill.adapters.pair import PairReport, load_skeleton, pair_report
from vlm_distill.config import dump_yaml
from vlm_distill.data.images import ImageStore
from vlm_distill.data.recipe import Dataset, Recipe, load_recipe, prepare
from vlm_distill.evaluation.task import load_suite, load_task
from vlm_distill.files import hash_json, read_json, write_json
from vlm_distill.measure import HeldOut, Measured, hold_out, score_both_ways
from vlm_distill.records import Example
from vlm_distill.run_config import EvaluateConfig, ModelConfig, RunConfig
from vlm_distill.run_folder import open_folder, print_log, write_provenance
from vlm_distill.stages import Context, Log, load, load_student, measure_student, train_student
from vlm_distill.summary import summarise


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
        student = load_student(context, first)
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
        measured += measure_student(context, "teacher", context.teacher)
    measured += measure_student(
        context, "random" if config.student.build else "student", load_student(context, first)
    )
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
            round=0,
            augment=warmup.augment,
        )
        start = trained.model
        measured += measure_student(context, "warm-up", load_student(context, start))
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
        trained = train_student(
            context, student, label, config.train, config.objective, objective, round=number
        )
        objective.load_state_dict(trained.objective)
        student, tokens = trained.model, tokens + trained.tokens
        if number == config.rounds or (config.evaluate and config.evaluate.every_round):
            measured += measure_student(context, label, load_student(context, student))
    if config.control:
        name, method = config.control.name, config.control.objective
        budget = config.train.model_copy(update={"steps": None, "epochs": None, "tokens": tokens})
        trained = train_student(context, start, name, budget, method, method.build(), round=1)
        measured += measure_student(context, name, load_student(context, trained.model))
    return measured
