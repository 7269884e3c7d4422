"""What stands before any other step: the data, and the student as it is before any training."""

from collections.abc import Sequence
from dataclasses import dataclass

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.config import apply_overrides, decode, user_path
from vlm_distill.data.own_table import own_table
from vlm_distill.data.recipe import Recipe, load_recipe, prepare
from vlm_distill.files import hash_json
from vlm_distill.models.fingerprint import require_as_written
from vlm_distill.models.save import save_recorded
from vlm_distill.models.vision_cache import why_not_cached
from vlm_distill.processes import on_main
from vlm_distill.records import Example
from vlm_distill.runs.config import DataConfig, StudentConfig
from vlm_distill.runs.context import Context
from vlm_distill.runs.provenance import Proven, Provenance, environment, write_provenance
from vlm_distill.state import find_state, write_state
from vlm_distill.students.build import build_llava
from vlm_distill.students.pruning import shrink_student


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What a student was made from, beside its folder."""

    key: str


def prepare_data(context: Context) -> None:
    # One process writes, the others read what it wrote.
    on_main(lambda: _prepare_data(context))


def _prepare_data(context: Context) -> None:
    for line in about_data(context.config.data):
        context.log(line)
    prepare(recipe_of(context.config.data), context.folder / "data", context.log)


def prepare_student(context: Context) -> None:
    """Make a student of parts and save it, unless it is there already and its parts are unchanged."""
    if context.config.student.model is None:
        on_main(lambda: _keep_student(context))


def introduce(context: Context) -> None:
    """Say how student and teacher fit together and what is cached of them; write down what they are."""
    if context.is_introduced:
        return
    context.is_introduced = True
    student, teacher = context.student(""), context.teacher
    for line in context.pair.lines() if context.pair else ():
        context.log(f"pair: {line}")
    for name, loaded in (("teacher", teacher.loaded if teacher else None), ("student", student)):
        if context.vision_cache and loaded and "vision" in loaded.adapter.parts:
            reason = why_not_cached(loaded)
            if reason:
                context.log(f"vision cache: the {name} encodes every image again: {reason}")
    # Asked for before, so that what is left out of them is written down.
    prompts = (
        f"{len(context.examples):,} prompts to train on, {len(context.held_out_prompts):,} to compare on"
    )
    context.log(f"data: {prompts}")
    now = environment()
    provenance = Provenance(
        packages=now.packages,
        python=now.python,
        machine=now.machine,
        num_processes=now.num_processes,
        seed=context.config.seed,
        data=context.dataset.fingerprint,
        data_counts=context.dataset.counts,
        unreadable_prompts=context.num_unreadable,
        student=student.fingerprint,
        teacher=teacher.loaded.fingerprint if teacher else None,
        proven={
            role: Proven(verdict=verdict.hash, is_generic=verdict.is_generic)
            for role, verdict in (("teacher", context.proof.teacher), ("student", context.proof.student))
            if verdict is not None
        },
    )
    on_main(lambda: write_provenance(context.folder, provenance))
    # The teacher works next.
    context.drop_student()


def recipe_of(config: DataConfig) -> Recipe:
    """Return the recipe that a run prepares: the table at `path`, else the named one."""
    if config.path is not None:
        table = own_table(user_path(config.path)).recipe.model_dump(mode="json")
        return decode(Recipe, apply_overrides(table, config.overrides), where=config.path)
    assert config.recipe is not None
    return load_recipe(config.recipe, config.overrides)


def about_data(config: DataConfig) -> list[str]:
    """Return what the columns of a table at `path` are taken as, and that it replaces a recipe."""
    if config.path is None:
        return []
    lines = [own_table(user_path(config.path)).line]
    if config.recipe is not None:
        lines.append(f"data.path replaces the recipe {config.recipe!r}, which is not read")
    return [f"data: {line}" for line in lines]


def trains_tokenizer(config: StudentConfig) -> bool:
    return config.build is not None and not isinstance(config.build.tokenizer, str)


def millions(loaded: LoadedModel) -> str:
    return f"{sum(parameter.numel() for parameter in loaded.model.parameters()) / 1e6:.2f} M"


def _keep_student(context: Context) -> None:
    config, teacher = context.config, context.teacher
    folder = context.folder / context.steps["student.prepare"].folder
    record = folder.with_name(f"{folder.name}.json")
    texts = _texts(context.drawn_examples)
    read = texts if trains_tokenizer(config.student) else None
    fingerprint = teacher.loaded.fingerprint if teacher else None
    key = hash_json([config.student.model_dump(mode="json"), config.seed, fingerprint, read])
    made_before = find_state(Made, record, remedy=f"delete {folder} and {record}; both are made again")
    if made_before is not None and made_before.key == key and folder.is_dir():
        require_as_written(folder)
        return
    made = _make_student(config.student, teacher.full() if teacher else None, texts=texts, seed=config.seed)
    save_recorded(made, folder, delete=".")
    write_state(record, Made(key=key))
    context.log(f"student: made from parts, {millions(made)} parameters, saved to {folder}")


def _texts(examples: Sequence[Example]) -> list[str]:
    """Return the distinct texts of prompts and references, on which a new tokenizer is trained."""
    parts = (part for example in examples for message in example.messages for part in message.content)
    references = (reference for example in examples for reference in example.references)
    return sorted({*(part.text for part in parts if part.type == "text"), *references})


def _make_student(
    config: StudentConfig, teacher: LoadedModel | None, *, texts: Sequence[str], seed: int
) -> LoadedModel:
    if config.build is not None:
        return build_llava(config.build, teacher=teacher, texts=texts, seed=seed)
    assert config.shrink is not None
    assert teacher is not None
    return shrink_student(config.shrink, teacher=teacher)
