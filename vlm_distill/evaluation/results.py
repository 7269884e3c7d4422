"""What an evaluation leaves on disk: samples.jsonl, a row per question, and results.json, the numbers.

Inference and scoring are separate: everything in results.json follows from samples.jsonl, the task and the
provenance.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from vlm_distill.errors import DataError
from vlm_distill.evaluation.statistics import Estimate
from vlm_distill.files import atomic_path, hash_json, sha256_file
from vlm_distill.state import read_rows, read_state, write_state

REMEDY = "delete it and evaluate again"
NO_RESPONSE = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One question with the model's answer and its scores.

    `document_hash` covers id, images, references and meta of the question as the data set has it,
    `prompt_hash` what the model saw (other images in a shuffled run), `target_hash` the references. `finish`
    is "none" where no response was stored (the model said nothing, was aborted, or the prompt did not fit:
    `Provenance.responses` says how many of each); the prediction is then empty and wrong. A score of None is
    an answer that the scorer could not parse: it counts as 0.
    """

    id: str
    cluster: str
    document_hash: str
    prompt_hash: str
    target_hash: str
    references: tuple[str, ...]
    prediction: str
    finish: str
    subsets: tuple[str, ...]
    scores: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Where predictions come from.

    `key` identifies them: model, sampling, questions, limit, shuffled images. `asking_hash` is that of the
    part of the task that decides what is asked. `engines` is what the engines that made them say of
    themselves. `data_counts` says what became of the rows of the data set, `responses` is the count of the
    generation stage (overlong and aborted prompts among them).
    """

    key: str
    asking_hash: str
    model_fingerprint: str
    engines: Sequence[Mapping[str, str]]
    sampling: Mapping[str, Any]
    limit: int | None
    shuffle_images: bool
    data_counts: Mapping[str, int]
    responses: Mapping[str, int]
    packages: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """The numbers of one model on one task.

    `metrics[metric][subset]` with the subset "all" for the whole set; `counts` has `examples`, `clusters`,
    `empty`, `truncated`, `no_response` and `unparsed_METRIC`. `scorers` are the configs of the metrics, the
    profile of each among them.
    """

    task: str
    version: int
    task_hash: str
    verified: bool
    scorers: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Mapping[str, Estimate]]
    counts: Mapping[str, int]
    provenance: Provenance


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult(Scored):
    """The numbers with the samples that they follow from."""

    samples: tuple[Sample, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers(Scored):
    """What results.json holds: the numbers, and what names their samples."""

    predictions_hash: str
    samples_sha256: str | None = None
    format: Literal[2] = 2


def predictions_hash(samples: Sequence[Sample]) -> str:
    """Return the hash of what the model did, which scoring again does not change."""
    return hash_json(
        [[sample.id, sample.prompt_hash, sample.prediction, sample.finish] for sample in samples]
    )


def write_result(folder: Path, result: TaskResult) -> None:
    """Write both files atomically, samples first; results.json carries the hash of their predictions."""
    with atomic_path(folder / "samples.jsonl") as temporary, temporary.open("w", encoding="utf-8") as handle:
        handle.writelines(json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in result.samples)
    numbers = Numbers(
        **_scored(result),
        predictions_hash=predictions_hash(result.samples),
        samples_sha256=sha256_file(folder / "samples.jsonl"),
    )
    write_state(folder / "results.json", numbers)


def read_result(folder: Path) -> TaskResult:
    """Return the result that lies in `folder`.

    Raises:
        DataError: a file is missing or damaged, has another format, or the two do not belong together.
    """
    numbers = read_numbers(folder)
    path = folder / "samples.jsonl"
    samples = read_samples(path)
    is_changed = numbers.samples_sha256 is not None and sha256_file(path) != numbers.samples_sha256
    if is_changed or predictions_hash(samples) != numbers.predictions_hash:
        raise DataError(
            f"{folder / 'results.json'}: does not belong to the predictions in samples.jsonl beside it; "
            "evaluate again"
        )
    return TaskResult(**_scored(numbers), samples=samples)


def _scored(result: Scored) -> dict[str, Any]:
    return {field.name: getattr(result, field.name) for field in fields(Scored)}


def read_numbers(folder: Path) -> Numbers:
    """Return what results.json in `folder` holds; DataError as `read_result`."""
    return read_state(Numbers, folder / "results.json", remedy=REMEDY)


def read_samples(path: Path) -> tuple[Sample, ...]:
    """Return the rows of a samples.jsonl; DataError where it is missing or a line is not a sample."""
    return tuple(read_rows(Sample, path, remedy=REMEDY))
