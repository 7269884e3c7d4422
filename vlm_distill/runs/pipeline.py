"""The run: it walks over the steps of its plan, or over those that were asked for.

Every step skips itself when its inputs and config are unchanged and continues when it was interrupted. Which
steps there are is in plan.py, what they do in prepare.py and stages.py.
"""

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from vlm_distill.conformance.prove import weighed
from vlm_distill.data.images import ImageStore
from vlm_distill.errors import ConfigError
from vlm_distill.evaluation.measures import Measured
from vlm_distill.evaluation.task import load_suite, load_task
from vlm_distill.generation.backend import Asked, Wanted
from vlm_distill.generation.engines import live_config, require_engine
from vlm_distill.models.feature_store import FeatureStore, VisionCacheConfig
from vlm_distill.models.vision_cache import with_vision_cache
from vlm_distill.processes import is_main, on_main, start
from vlm_distill.progress import Log
from vlm_distill.runs.check import inspect
from vlm_distill.runs.config import EvaluateConfig, ModelConfig, RunConfig, read_by_teacher
from vlm_distill.runs.context import Context
from vlm_distill.runs.engines import GREEDY, about_live, require_engines
from vlm_distill.runs.evaluator import Evaluator, has_answers
from vlm_distill.runs.folder import hold, is_complete, open_folder, print_log, require_plan
from vlm_distill.runs.inputs import require_same_inputs
from vlm_distill.runs.plan import BASE, TEACHER, Kind, Step, choose, plan
from vlm_distill.runs.prepare import introduce, prepare_data, prepare_student
from vlm_distill.runs.proof import Proof, prove_models, proven
from vlm_distill.runs.provenance import record_steps
from vlm_distill.runs.stages import cache, cache_existing, generate, measure, train_student
from vlm_distill.runs.summary import summarise
from vlm_distill.runs.teacher import load, load_options, without_weights
from vlm_distill.runs.usable import require_images_read

BY_NAME: dict[str, Callable[[Context], object]] = {
    "data.prepare": prepare_data,
    "student.prepare": prepare_student,
    "held_out.generate": lambda context: context.held_out_answers,
    "held_out.cache": lambda context: context.held_out,
}
BY_KIND: dict[Kind, Callable[[Context, Step], object]] = {
    "generate": generate,
    "cache": cache,
    "train": train_student,
}


def run(config: RunConfig, *, only: Sequence[str] = (), log: Log = print_log) -> str:
    """Do every step that is not done yet; return the summary table, also printed and put in the folder.

    `only` names the steps, or stages with all their steps, that are done in this call; the summary is
    written by a call without it. The report is the caller's to write (`reporting.write_report`), and under a
    launcher so is leaving the process group (`processes.stop`).

    Raises:
        ConfigError: there is no step of that name, or one that it needs is not complete.
    """
    steps = plan(config)
    chosen = choose(steps, only) if only else steps
    require_plan(config.folder)
    start(config.device)
    # What is wrong in the config or missing on this machine shows here, before anything is written.
    proof = _inspect(config, chosen, log)
    if only:
        _require_ready(config.folder, steps, chosen)
    with _opened(config, steps) as folder:
        _announce(config, folder, chosen, log)
        context = Context(config, folder, steps, proof=proof, log=log)
        measured = _walk(context, chosen)
        features = context.vision_cache
        if features and features.num_computed + features.num_found:
            log(f"vision cache: {features}")
        if only:
            return ""
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
    steps = plan(config)
    require_plan(config.folder)
    start(config.device)
    asked = [step for step in steps if step.track == TEACHER and step.kind == "generate"]
    proof = _inspect(config, asked, log)
    if not read_by_teacher(config):
        raise ConfigError("cache: no objective of this run reads the teacher; nothing to cache")
    with _opened(config, steps) as folder:
        where = folder / "cache"
        log(f"cache {config.name}: writes to {where}; safe to interrupt, the same command continues")
        context = Context(config, folder, steps, proof=proof, log=log)
        before = (*BASE, "held_out.generate", "held_out.cache")
        _walk(context, [step for step in steps if step.name in before])
        introduce(context)
        lines = cache_existing(context)
        context.keep_features()
        if is_main():
            print("\n".join(lines))
    return lines


def evaluate_model(
    config: ModelConfig, evaluate: EvaluateConfig, *, folder: Path, device: str, log: Log = print_log
) -> str:
    """Score a model on a suite outside a run; return the table, which is also written below `folder`."""
    assert evaluate.suite is not None
    start(device)
    tasks = [load_task(entry.task) for entry in load_suite(evaluate.suite).tasks]
    options = load_options(config, device)
    images = ImageStore(folder / "images")
    # Questions share images; there is no run folder to keep features in.
    store = FeatureStore(VisionCacheConfig(), folder=None, log=log)
    loaded = without_weights(config, options)
    verdict = proven(loaded, ("answers", "vision_cache"), role="model", log=log)
    full = functools.cache(lambda: with_vision_cache(weighed(load(config, device, verdict), log=log), store))
    # Loaded neither for stored answers nor for another engine.
    asked = Asked(loaded=loaded, load_images=images.load_images, options=options, full=full)
    if not has_answers(folder, evaluate.suite, shuffle_images=evaluate.shuffle_images):
        require_images_read(loaded, "model", None, tasks)
        wanted = Wanted(loaded=loaded, options=options, sampling=GREEDY)
        require_engine(evaluate.answers_with, wanted, where="--engine")
        if live_config(evaluate.answers_with) == evaluate.answers_with:
            full()  # damaged weights are said before the suite is read
    evaluator = Evaluator(config=evaluate, images=images, log=log, engine_key="--engine")
    with hold(folder):
        one = evaluator.measure(asked, label=config.model, track="", folder=folder)
        return on_main(lambda: summarise([one], folder=folder))


def _opened(config: RunConfig, steps: Sequence[Step]) -> AbstractContextManager[Path]:
    """Return the run folder, held by this job, whose results are of the inputs as they are now."""
    return open_folder(config, steps, check=lambda: require_same_inputs(config, config.folder, steps))


def _inspect(config: RunConfig, chosen: Sequence[Step], log: Log) -> Proof:
    """Return the verdicts on the models of a run, or refuse what it cannot be done with."""
    found = inspect(config)
    require_engines(config, chosen, teacher=found.teacher, student=found.student, alignment=found.alignment)
    return prove_models(config, found.teacher, found.student, log)


def _require_ready(folder: Path, steps: Sequence[Step], chosen: Sequence[Step]) -> None:
    """Refuse steps that need others which are neither complete nor chosen."""
    names = {step.name for step in chosen}
    by_name = {step.name: step for step in steps}
    for step in chosen:
        waits = [name for name in step.needs if name not in names and not is_complete(folder, by_name[name])]
        if waits:
            raise ConfigError(
                f"--stage {step.name}: {', '.join(waits)} must run first in {folder}; add "
                f"{' '.join(f'--stage {name}' for name in waits)}, or leave --stage out to run everything"
            )


def _announce(config: RunConfig, folder: Path, chosen: Sequence[Step], log: Log) -> None:
    log(f"run {config.name}: writes to {folder}; safe to interrupt, the same command continues")
    if config.cache:
        log(
            f"teacher: what it says about stored responses is cached before every stage (tier "
            f"{config.cache.tier}); training keeps no more of it than its output layer"
        )
    for line in about_live(config):
        log(line)
    log(f"steps: {', '.join(step.name for step in chosen)}")


def _walk(context: Context, steps: Sequence[Step]) -> list[Measured]:
    """Do the steps in their order; return what was measured."""
    measured: list[Measured] = []
    made: list[str] = []
    for step in steps:
        if step.kind != "prepare":
            introduce(context)
        made += on_main(functools.partial(_missing, context.folder, step))
        if context.is_introduced:
            # Before the step, which a kill may end in the moment when it is complete.
            on_main(functools.partial(record_steps, context.folder, made))
            made = []
        started = time.monotonic()
        if step.kind == "evaluate":
            measured.append(measure(context, step))
        elif step.name in BY_NAME:
            BY_NAME[step.name](context)
        else:
            BY_KIND[step.kind](context, step)
        context.seconds[step.name] = time.monotonic() - started
        context.keep_features()
    return measured


def _missing(folder: Path, step: Step) -> list[str]:
    """Return the name of a step that this job will make, none where its results are there."""
    return [] if is_complete(folder, step) else [step.name]
