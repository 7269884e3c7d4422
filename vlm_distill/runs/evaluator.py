"""What a run measures of a model.

The suite, the suite with permuted images, and agreement with the teacher on held-out prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.data.images import ImageLoader, ImageStore
from vlm_distill.evaluation.agreement import FORWARD_KL, Agreement, agreement
from vlm_distill.evaluation.compare import same_answer
from vlm_distill.evaluation.harness import evaluate_task
from vlm_distill.evaluation.results import TaskResult
from vlm_distill.evaluation.selection import take_clusters
from vlm_distill.evaluation.task import load_suite, load_task
from vlm_distill.files import hash_json, read_json, write_json
from vlm_distill.generation.engine import Sampling
from vlm_distill.generation.work import generate_responses
from vlm_distill.losses.divergences import ForwardKL, ReverseKL
from vlm_distill.processes import on_main
from vlm_distill.progress import Log
from vlm_distill.records import Author, Example, Response
from vlm_distill.runs.config import EvaluateConfig
from vlm_distill.runs.teacher import Whole, engine_of
from vlm_distill.teacher_cache.store import CacheReader


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One row of the summary.

    `token_kl` is KL(teacher || student) in nats per token of the teacher's answers, `own_kl`
    KL(student || teacher) per token of the student's own; None for the teacher and without held-out data.
    """

    label: str
    fingerprint: str
    results: Mapping[str, TaskResult]
    shuffled: Mapping[str, TaskResult]
    token_kl: float | None = None
    own_kl: float | None = None
    top1: float | None = None
    answers: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """The prompts on which students are compared with the teacher, and its greedy responses to them.

    `cache` holds the teacher's hidden states of these responses, where the teacher is not kept in memory.
    """

    examples: list[Example]
    responses: dict[str, Response]
    cache: CacheReader | None = None


def score_suite(
    config: EvaluateConfig,
    loaded: LoadedModel,
    *,
    label: str,
    folder: Path,
    images: ImageStore,
    shuffle: bool,
    log: Log,
    whole: Whole | None = None,
) -> dict[str, TaskResult]:
    """Return the results of `loaded` on every task of the suite, by task name; none without a suite."""
    if config.suite is None:
        return {}
    engine = engine_of(
        loaded,
        lambda example: [images.load(image) for image in example.images],
        batch_size=config.batch_size,
        whole=whole,
    )
    results = {}
    for entry in load_suite(config.suite).tasks:
        limits = [limit for limit in (entry.limit, config.limit) if limit is not None]
        result = evaluate_task(
            load_task(entry.task),
            engine,
            folder=folder,
            images=images,
            limit=min(limits, default=None),
            shuffle_images=shuffle,
            log=lambda line: log(f"{label}: {line}"),
        )
        results[result.task] = result
    return results


def score_both_ways(
    config: EvaluateConfig,
    loaded: LoadedModel,
    *,
    label: str,
    folder: Path,
    images: ImageStore,
    log: Log,
    whole: Whole | None = None,
) -> tuple[dict[str, TaskResult], dict[str, TaskResult]]:
    """Return the results of the suite, and those with permuted images where the config wants them."""
    normal = score_suite(
        config, loaded, label=label, folder=folder, images=images, shuffle=False, log=log, whole=whole
    )
    if not (normal and config.shuffle_images):
        return normal, {}
    return normal, score_suite(
        config, loaded, label=label, folder=folder, images=images, shuffle=True, log=log, whole=whole
    )


def hold_out(
    config: EvaluateConfig,
    teacher: LoadedModel,
    held_out: Sequence[Example],
    load_images: ImageLoader,
    *,
    folder: Path,
    log: Log,
    whole: Whole | None = None,
) -> HeldOut | None:
    """Draw the held-out prompts and let the teacher answer them greedily.

    None where there is nothing to compare on.
    """
    if not config.agreement_examples:
        return None
    if not held_out:
        log("agreement with the teacher: not measured, because the recipe holds nothing out")
        return None
    clusters = [example.images[0] if example.images else example.id for example in held_out]
    examples = take_clusters(held_out, clusters, limit=config.agreement_examples)
    responses = _greedy(
        config,
        teacher,
        examples,
        load_images,
        folder=folder / "teacher",
        author="teacher",
        log=log,
        whole=whole,
    )
    return HeldOut(examples=examples, responses=responses)


def _greedy(
    config: EvaluateConfig,
    loaded: LoadedModel,
    examples: Sequence[Example],
    load_images: ImageLoader,
    *,
    folder: Path,
    author: Author,
    log: Log,
    whole: Whole | None = None,
) -> dict[str, Response]:
    responses = generate_responses(
        engine_of(loaded, load_images, batch_size=config.batch_size, whole=whole),
        examples,
        Sampling(temperature=0.0, max_new_tokens=config.agreement_tokens),
        folder=folder,
        author=author,
        round=0,
        log=log,
        label=f"held-out {folder.name} answers",
    )
    return {response.example_id: response for response in responses}


def live_agreement(
    config: EvaluateConfig,
    student: LoadedModel,
    teacher: LoadedModel,
    held_out: HeldOut,
    load_images: ImageLoader,
    *,
    vocabulary: slice,
    divergence: ForwardKL | ReverseKL = FORWARD_KL,
) -> Agreement:
    """Return how close the student, as it is now, is to its teacher on the responses of `held_out`."""
    width = len(student.adapter.head(student.model).weight)
    return agreement(
        student,
        teacher,
        held_out.examples,
        held_out.responses,
        load_images,
        batch_size=config.batch_size,
        vocabulary=torch.arange(*vocabulary.indices(width)),
        divergence=divergence,
        cache=held_out.cache,
    )


def compare_with_teacher(
    config: EvaluateConfig,
    student: LoadedModel,
    teacher: LoadedModel,
    held_out: HeldOut,
    load_images: ImageLoader,
    *,
    vocabulary: slice,
    folder: Path,
    log: Log,
    whole: Whole | None = None,
) -> dict[str, float | None]:
    """Return token KL, own KL, top-1 agreement and answer agreement on the held-out prompts.

    They are stored and not computed twice. The own KL of a student that answers nothing is None. `whole`
    gives all of the teacher, to read the student's answers, where `teacher` is its output layer alone.
    """
    path = folder / "agreement.json"
    key = _agreement_key(config, student, teacher, held_out, vocabulary=vocabulary)
    saved = on_main(lambda: read_json(path) if path.is_file() else None)
    if saved is not None and saved["key"] == key:
        return dict(saved["values"])
    found = on_main(
        lambda: live_agreement(config, student, teacher, held_out, load_images, vocabulary=vocabulary)
    )
    answers = _greedy(
        config, student, held_out.examples, load_images, folder=folder / "held_out", author="student", log=log
    )
    equal = [
        id in answers and same_answer(answers[id].text, response.text)
        for id, response in held_out.responses.items()
    ]
    texts = HeldOut(examples=held_out.examples, responses=answers)

    def own_kl() -> float | None:
        return _own_kl(config, student, whole or (lambda: teacher), texts, load_images, vocabulary=vocabulary)

    values = {
        "token_kl": found.token_kl,
        "own_kl": on_main(own_kl),
        "top1": found.top1,
        "answers": sum(equal) / len(equal),
    }
    counts = {"num_tokens": found.num_tokens, "num_examples": len(equal)}
    counts |= {"num_without_response": found.num_without_response}
    on_main(lambda: write_json(path, {"key": key, "values": values, **counts}))
    return values


def _own_kl(
    config: EvaluateConfig,
    student: LoadedModel,
    teacher: Whole,
    answered: HeldOut,
    load_images: ImageLoader,
    *,
    vocabulary: slice,
) -> float | None:
    """Return what the teacher thinks of the student's answers, of which no cache knows; None without any."""
    if not answered.responses:
        return None
    divergence = ReverseKL()
    return live_agreement(
        config, student, teacher(), answered, load_images, vocabulary=vocabulary, divergence=divergence
    ).token_kl


def _agreement_key(
    config: EvaluateConfig,
    student: LoadedModel,
    teacher: LoadedModel,
    held_out: HeldOut,
    *,
    vocabulary: slice,
) -> str:
    teacher_ids = [[response.example_id, response.token_ids] for response in held_out.responses.values()]
    settings = [config.agreement_tokens, vocabulary.start, vocabulary.stop, "token and own KL"]
    return hash_json([student.fingerprint, teacher.fingerprint, hash_json(teacher_ids), settings])
