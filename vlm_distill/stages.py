"""The stages of a run: responses, training and measuring of one student, each skipped or resumed by itself.

Their order is in pipeline.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image

from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.adapters.catalog import load_model
from vlm_distill.adapters.pair import PairReport, share_stops
from vlm_distill.data.augment import Augment
from vlm_distill.data.images import ImageStore
from vlm_distill.data.recipe import Dataset
from vlm_distill.files import hash_json
from vlm_distill.generation.references import encode_references
from vlm_distill.generation.run import generate_responses
from vlm_distill.generation.transformers_engine import TransformersEngine
from vlm_distill.losses import Objective, ObjectiveConfig
from vlm_distill.measure import HeldOut, Measured, compare_with_teacher, score_both_ways
from vlm_distill.records import Author, Example, Response
from vlm_distill.run_config import ModelConfig, RunConfig
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


def load_student(context: Context, name: str | Path) -> LoadedModel:
    """Load a student from disk, so that what is measured and trained on is exactly what was saved.

    It is loaded in float32, in which its weights are updated, and stops where its teacher stops.
    """
    settings = context.config.student
    model = ModelConfig(model=str(name), trust_remote_code=settings.trust_remote_code)
    student = load(model, context.config.device)
    return share_stops(student, context.teacher) if context.teacher else student


def train_student(
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
    student = load_student(context, start)
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


def measure_student(context: Context, label: str, loaded: LoadedModel) -> list[Measured]:
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
