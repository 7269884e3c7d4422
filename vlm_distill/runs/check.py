"""What a run will be, without loading a weight: resolved config, pair report, and the memory it needs."""

from dataclasses import dataclass, replace

import torch

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.alignment.alignment import ALL_IDS, Alignment
from vlm_distill.alignment.pair import PairReport, num_image_tokens, pair_report
from vlm_distill.config import dump_yaml
from vlm_distill.data.recipe import Recipe
from vlm_distill.errors import printable
from vlm_distill.evaluation.task import load_suite, load_task
from vlm_distill.losses import ObjectiveConfig
from vlm_distill.models.skeleton import load_skeleton
from vlm_distill.runs.config import RunConfig
from vlm_distill.runs.engines import about_live, require_engines
from vlm_distill.runs.folder import require_plan
from vlm_distill.runs.memory import MicroBatchShape, estimate, weightless
from vlm_distill.runs.plan import Step, plan, tracks
from vlm_distill.runs.prepare import about_data, millions, recipe_of, trains_tokenizer
from vlm_distill.runs.proof import about, student_uses, teacher_uses
from vlm_distill.runs.teacher import load_options
from vlm_distill.runs.usable import require_images_read, require_readable_prompts
from vlm_distill.students.build import build_llava
from vlm_distill.students.pruning import shrink_student
from vlm_distill.teacher_cache.tiers import tier_of
from vlm_distill.training.config import TrainConfig
from vlm_distill.training.parts import prepare_parts

TEXT_TOKENS = 64
"""A question with its chat template; the memory estimate reads no data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspected:
    """A run whose parts were all found; the models have no weights."""

    recipe: Recipe
    tasks: list[str]
    teacher: LoadedModel | None
    student: LoadedModel
    pair: PairReport | None

    @property
    def alignment(self) -> Alignment:
        return self.pair.alignment if self.pair else ALL_IDS


def check(config: RunConfig) -> str:
    """Return the resolved run, the pair report and the memory estimate.

    Reads configs, tokenizers, processors and no weights.
    """
    require_plan(config.folder)
    found, steps = inspect(config), plan(config)
    require_engines(config, steps, teacher=found.teacher, student=found.student, alignment=found.alignment)
    found, proof = _with_verdicts(config, found)
    lines = dump_yaml(config.model_dump(mode="json")).rstrip().split("\n")
    lines.append(f"data: recipe {found.recipe.name} with {len(found.recipe.sources)} source(s)")
    lines += about_data(config.data)
    lines.append(f"evaluation: {', '.join(found.tasks) or 'none'}")
    lines += [f"pair: {line}" for line in found.pair.lines()] if found.pair else []
    lines += proof
    about = " (more with the tokens that the data will give it)" if trains_tokenizer(config.student) else ""
    lines.append(f"student: {millions(found.student)} parameters{about}; the run writes to {config.folder}")
    lines += [f"step: {_line(step)}" for step in steps]
    lines += about_live(config)
    if config.cache:
        lines += _cache(config, found)
    if config.warmup:
        lines += _memory(config, found, "warm-up", config.warmup.train, config.warmup.objective)
    if config.rounds and config.train and config.objective:
        lines += _memory(config, found, "rounds", config.train, config.objective)
    return "\n".join(map(printable, lines))


def _with_verdicts(config: RunConfig, found: Inspected) -> tuple[Inspected, list[str]]:
    """Return the models as their kept verdicts have measured them, and a line about each."""
    student, line = about(found.student, student_uses(config), role="student")
    if found.teacher is None:
        return replace(found, student=student), [line]
    teacher, first = about(found.teacher, teacher_uses(config), role="teacher")
    return replace(found, teacher=teacher, student=student), [first, line]


def _line(step: Step) -> str:
    return step.name + (f", after {', '.join(step.needs)}" if step.needs else "")


def _cache(config: RunConfig, found: Inspected) -> list[str]:
    assert config.cache is not None
    assert config.teacher is not None
    assert found.teacher is not None
    head = found.teacher.head
    known = head.weight.dtype if config.teacher.dtype == "auto" else getattr(torch, config.teacher.dtype)
    size = tier_of(config.cache).bytes_per_token(head, dtype=known)
    layer = head.weight.numel() * known.itemsize / 2**20
    return [
        f"cache: tier {config.cache.tier}, {size:,} bytes per response token; the teacher's output layer "
        f"({layer:,.1f} MiB) is all that training loads of it"
    ]


def _memory(
    config: RunConfig, found: Inspected, stage: str, train: TrainConfig, objective: ObjectiveConfig
) -> list[str]:
    """Return the estimate for one kind of stage: responses of full length, one probe image a prompt."""
    built, sampling = objective.build(), config.generate.sampling
    image = num_image_tokens(found.student)
    tokens = MicroBatchShape(
        prompt=TEXT_TOKENS + image,
        image=image,
        response=sampling.max_new_tokens,
        responses=len(built.stored_authors or built.authors) * sampling.num_samples,
    )
    teacher = found.teacher if built.needs_teacher and not config.cache else None
    options = load_options(config.teacher, config.device) if config.teacher else None
    given = {} if options is None else {"options": options}
    memory = estimate(found.student, teacher, train=train, tokens=tokens, **given)
    return [f"memory of the {stage}: {line}" for line in memory.lines()]


def inspect(config: RunConfig) -> Inspected:
    """Return the parts of a run and how teacher and student fit, or raise what is wrong."""
    recipe = recipe_of(config.data)
    suite = load_suite(config.evaluate.suite) if config.evaluate and config.evaluate.suite else None
    tasks = [load_task(entry.task) for entry in suite.tasks] if suite else []
    teacher = None
    if config.teacher:
        teacher = load_skeleton(config.teacher.model, trust_remote_code=config.teacher.trust_remote_code)
    if config.student.build:
        with torch.device("meta"):
            student = build_llava(config.student.build, teacher=teacher, texts=[], seed=config.seed)
    elif config.student.shrink:
        assert teacher is not None
        student = shrink_student(config.student.shrink, teacher=teacher)
    else:
        assert config.student.model is not None
        student = load_skeleton(config.student.model, trust_remote_code=config.student.trust_remote_code)
    for role, model in (("teacher", teacher), ("student", student)):
        if model is not None:
            require_readable_prompts(model)
            require_images_read(model, role, recipe, tasks)
    pair = pair_report(teacher, student) if teacher else None
    for track in tracks(config):
        # A control learns what the rounds do.
        if not track.budget_of:
            prepare_parts(weightless(student), track.train.trainable, seed=config.seed)
    names = [task.name for task in tasks]
    return Inspected(recipe=recipe, tasks=names, teacher=teacher, student=student, pair=pair)
