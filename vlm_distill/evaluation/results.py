"""What an evaluation leaves on disk: samples.jsonl, a row per question, and results.json, the numbers.

Inference and scoring are separate: everything in results.json follows from samples.jsonl, the task and the
provenance.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlm_distill.errors import DataError
from vlm_distill.evaluation.statistics import Estimate
from vlm_distill.files import atomic_path, hash_json, read_json, write_json

FORMAT = 2
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
class TaskResult:
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
    samples: tuple[Sample, ...]


def predictions_hash(samples: Sequence[Sample]) -> str:
    """Return the hash of what the model did, which scoring again does not change."""
    return hash_json(
        [[sample.id, sample.prompt_hash, sample.prediction, sample.finish] for sample in samples]
    )


def write_result(folder: Path, result: TaskResult) -> None:
    """Write both files atomically, samples first; results.json carries the hash of their predictions."""
    with atomic_path(folder / "samples.jsonl") as temporary, temporary.open("w", encoding="utf-8") as handle:
        handle.writelines(json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in result.samples)
    fields = {
        name: getattr(result, name)
        for name in ("task", "version", "task_hash", "verified", "scorers", "counts")
    }
    metrics = {
        name: {key: asdict(value) for key, value in subsets.items()}
        for name, subsets in result.metrics.items()
    }
    provenance = {
        "provenance": asdict(result.provenance),
        "predictions_hash": predictions_hash(result.samples),
    }
    write_json(folder / "results.json", {"format": FORMAT, **fields, "metrics": metrics, **provenance})


def read_result(folder: Path) -> TaskResult:
    """Return the result that lies in `folder`.

    Raises:
        DataError: a file is missing or damaged, has another format, or the two do not belong together.
    """
    path = folder / "results.json"
    samples = read_samples(folder / "samples.jsonl")
    if not path.is_file():
        raise DataError(f"{path}: no such file; evaluate the model first")
    try:
        values = read_json(path)
        if values["format"] != FORMAT:
            raise DataError(
                f"{path}: expected format {FORMAT}, got {values['format']!r}; evaluate the model again"
            )
        metrics = {
            name: {key: Estimate(**value) for key, value in subsets.items()}
            for name, subsets in values["metrics"].items()
        }
        fields = {
            name: values[name] for name in ("task", "version", "task_hash", "verified", "scorers", "counts")
        }
        provenance, expected_hash = Provenance(**values["provenance"]), values["predictions_hash"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not a result of this version ({type(error).__name__}: {error}); evaluate again"
        ) from None
    if predictions_hash(samples) != expected_hash:
        raise DataError(
            f"{path}: does not belong to the predictions in samples.jsonl beside it; evaluate again"
        )
    return TaskResult(**fields, metrics=metrics, provenance=provenance, samples=samples)


def read_samples(path: Path) -> tuple[Sample, ...]:
    """Return the rows of a samples.jsonl.

    Raises:
        DataError: the file is missing, or a line is not a sample.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; evaluate the model first")
    samples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            row = json.loads(line)
            samples.append(
                Sample(**{**row, "references": tuple(row["references"]), "subsets": tuple(row["subsets"])})
            )
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}:{number}: not a sample of this version ({type(error).__name__}: {error})"
            ) from None
    return tuple(samples)
