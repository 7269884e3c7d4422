"""Evaluating a model on a task: examples, predictions (stored, resumed, skipped when unchanged), scores.

What a score is, is in scorers/ and scoring.py; what lies on disk is in results.py. Several processes share
the predictions; the main one reads the questions, scores and writes.
"""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vlm_distill.data.examples import RecipeSource, read_examples
from vlm_distill.data.images import ImageStore
from vlm_distill.data.store import ResponseStore, all_stored
from vlm_distill.errors import DataError
from vlm_distill.evaluation.results import (
    NO_RESPONSE,
    Provenance,
    Sample,
    TaskResult,
    read_result,
    write_result,
)
from vlm_distill.evaluation.scoring import score
from vlm_distill.evaluation.selection import EVERYTHING, Selection, shuffle_images, take_clusters
from vlm_distill.evaluation.task import Task
from vlm_distill.files import hash_json
from vlm_distill.generation.engine import Identity, OpenEngine, Sampling
from vlm_distill.generation.work import Job, generate_responses, read_counts
from vlm_distill.packages import package_version
from vlm_distill.processes import on_main
from vlm_distill.progress import Log
from vlm_distill.records import Example

PACKAGES = ("vlm-distill", "torch", "transformers", "numpy", "scipy", "pillow", "jinja2")
RESPONSES = "responses"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answerer:
    """The model that is evaluated, and how to open an engine that generates with it."""

    identity: Identity
    open_engine: OpenEngine


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a model answered. Without a stored response the text is empty and `finish` is "none"."""

    text: str
    finish: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """An example as the data set has it, and as it is asked: the same, or with the images of another one."""

    example: Example
    asked: Example


def evaluate_task(
    task: Task,
    model: Answerer,
    *,
    selection: Selection = EVERYTHING,
    folder: Path,
    images: ImageStore,
    log: Log,
) -> TaskResult:
    """Return the scores of a model, greedily decoded, and write them below `folder`.

    A result with shuffled images is compared with the normal one by `compare`. Predictions for the same
    questions, model, sampling and limit are not made again, whatever engine made them, an interrupted run
    continues, and what is there is scored with the metrics as they are now.

    Raises:
        DataError: the data cannot be read, or an example has fewer references than a metric needs.
        EngineError: the engine failed.
    """
    target = _target(folder, task, shuffle_images=selection.shuffle_images)
    questions, data_counts = on_main(lambda: _questions(task, images, selection, log=log))
    job = _job(task, model, questions, label=f"eval {target.name}")
    provenance = _provenance(task, job, selection, questions=questions)
    saved = on_main(lambda: _saved(target, provenance.key, log=log, label=job.label))
    if saved is None:
        answers = target / RESPONSES
        predictions = _predict(job, model.open_engine, folder=answers, log=log)
        provenance = replace(
            provenance,
            engines=ResponseStore(answers).engines,
            data_counts=data_counts,
            responses=asdict(read_counts(answers)),
        )
    else:
        predictions = {one.id: Prediction(text=one.prediction, finish=one.finish) for one in saved.samples}
        provenance = saved.provenance
    samples = [_sample(task, one, predictions[one.example.id]) for one in questions]
    return on_main(lambda: _score_and_write(task, samples, provenance, target))


def is_answered(folder: Path, task: Task, *, shuffle_images: bool) -> bool:
    """Return whether `evaluate_task` has all answers there, of whichever model and to whichever questions."""
    target = _target(folder, task, shuffle_images=shuffle_images)
    return (target / "results.json").exists() or all_stored(target / RESPONSES)


def _target(folder: Path, task: Task, *, shuffle_images: bool) -> Path:
    return folder / (f"{task.name}.shuffled_images" if shuffle_images else task.name)


def _job(task: Task, model: Answerer, questions: Sequence[Question], *, label: str) -> Job:
    sampling = Sampling(temperature=0.0, max_new_tokens=task.output.max_new_tokens, stop=task.output.stop)
    asked = [question.asked for question in questions]
    return Job(
        examples=asked,
        sampling=sampling,
        identity=model.identity,
        author="student",
        round=0,
        label=label,
        bound=f"output.max_new_tokens of task {task.name}",
    )


def _score_and_write(
    task: Task, samples: Sequence[Sample], provenance: Provenance, target: Path
) -> TaskResult:
    result = score(task, samples, provenance)
    write_result(target, result)
    return result


def _provenance(task: Task, job: Job, selection: Selection, *, questions: Sequence[Question]) -> Provenance:
    """Return the provenance of an evaluation before its data and responses are counted."""
    return Provenance(
        key=_key(task, job, questions=questions, limit=selection.limit),
        asking_hash=task.asking_hash(),
        model_fingerprint=job.identity.fingerprint,
        engines=[],
        sampling=job.sampling.model_dump(mode="json"),
        limit=selection.limit,
        shuffle_images=selection.shuffle_images,
        data_counts={},
        responses={},
        packages=_packages(),
    )


def _predict(job: Job, open_engine: OpenEngine, *, folder: Path, log: Log) -> dict[str, Prediction]:
    """Return one prediction per example id.

    Generation stores no empty and no aborted response and skips prompts that do not fit; in an evaluation all
    of them are answers, and wrong.
    """
    responses = generate_responses(job, open_engine, folder=folder, log=log)
    predictions = {example.id: Prediction(text="", finish=NO_RESPONSE) for example in job.examples}
    for response in responses:
        predictions[response.example_id] = Prediction(text=response.text, finish=response.finish)
    return predictions


def _questions(
    task: Task, images: ImageStore, selection: Selection, *, log: Log
) -> tuple[list[Question], dict[str, int]]:
    """Return what is asked, and what became of the rows of the data set."""
    entry = RecipeSource(source=task.data, prompt=task.prompt, system=task.system)
    examples, counts = read_examples(entry, images, log=log)
    if not examples:
        raise DataError(f"task {task.name}: expected examples, got none; check its data")
    _check_references(task, examples)
    taken = take_clusters(examples, [task.cluster(example) for example in examples], limit=selection.limit)
    asked = shuffle_images(taken) if selection.shuffle_images else taken
    questions = [Question(example=example, asked=other) for example, other in zip(taken, asked, strict=True)]
    return questions, {**counts, "beyond_limit": len(examples) - len(taken)}


def _check_references(task: Task, examples: Sequence[Example]) -> None:
    for metric in task.metrics:
        for example in examples:
            if len(example.references) < metric.min_references:
                raise DataError(
                    f"task {task.name}: {metric.name} needs at least {metric.min_references} references, "
                    f"got {len(example.references)} for {example.id!r}; check columns.references"
                )


def _key(task: Task, job: Job, *, questions: Sequence[Question], limit: int | None) -> str:
    documents = [_document_hash(one.example) for one in questions]
    return hash_json([task.asking_hash(), job.key(), limit, documents])


def _saved(target: Path, key: str, *, log: Log, label: str) -> TaskResult | None:
    """Return the result in `target` if its predictions are those that would be made now."""
    if not (target / "results.json").exists():
        return None
    try:
        saved = read_result(target)
    except DataError as error:
        # Where its responses cannot be read either, their refusal is all that is said.
        all_stored(target / RESPONSES)
        log(f"{label}: the old result is not used: {error}")
        return None
    if saved.provenance.key != key:
        log(f"{label}: the old result is replaced: it is of another model, other questions or other settings")
        return None
    log(f"{label}: unchanged, {len(saved.samples):,} stored predictions are scored")
    return saved


def _sample(task: Task, question: Question, prediction: Prediction) -> Sample:
    example = question.example
    return Sample(
        id=example.id,
        cluster=task.cluster(example),
        document_hash=_document_hash(example),
        prompt_hash=question.asked.prompt_hash(),
        target_hash=hash_json(example.references),
        references=example.references,
        prediction=prediction.text,
        finish=prediction.finish,
        subsets=(),
        scores={},
    )


def _document_hash(example: Example) -> str:
    """Return the hash of the question as the data set has it, without the prompt, which is the task's."""
    return hash_json([example.id, example.images, example.references, example.meta])


def _packages() -> dict[str, str]:
    versions = {name: package_version(name) or "not installed" for name in PACKAGES}
    return {"python": platform.python_version(), **versions}
