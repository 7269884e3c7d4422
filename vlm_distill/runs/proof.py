"""The verdicts on a run's models: which uses it has of them, and what it asks the cache for before it writes.

Structure needs no weights, so that a run refuses a family before its first step. What was measured reaches
every load of a model: the students of all stages have the structure of the first.
"""

from dataclasses import dataclass

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.conformance.checks import Use, names_for
from vlm_distill.conformance.prove import require, settle, verdict_on
from vlm_distill.conformance.verdict import Verdict, find_verdict
from vlm_distill.models.lora import Lora
from vlm_distill.progress import Log, silent
from vlm_distill.runs.config import RunConfig
from vlm_distill.runs.plan import tracks
from vlm_distill.training.config import Trainable


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """The verdicts on the teacher of a run, if there is one, and on its student as it starts."""

    teacher: Verdict | None
    student: Verdict


def prove_models(config: RunConfig, teacher: LoadedModel | None, student: LoadedModel, log: Log) -> Proof:
    """Return the verdicts on the models of a run, which may be skeletons; missing ones are made.

    Raises:
        AdapterError: a check that the run needs has failed.
    """
    of_teacher = None
    if teacher is not None:
        of_teacher = proven(teacher, teacher_uses(config), role="teacher", log=log)
    return Proof(teacher=of_teacher, student=proven(student, student_uses(config), role="student", log=log))


def proven(loaded: LoadedModel, uses: tuple[Use, ...], *, role: str, log: Log) -> Verdict:
    """Return the verdict on a model, or refuse it where one of the uses needs more."""
    verdict = verdict_on(loaded, uses=uses, role=role, log=log)
    require(verdict, uses=uses, path=loaded.path)
    return verdict.on(names_for(uses))


def teacher_uses(config: RunConfig) -> tuple[Use, ...]:
    found: list[Use] = ["answers"]
    if config.cache is not None:
        found.append("caches")
    return (*found, *_vision_cache(config))


def student_uses(config: RunConfig) -> tuple[Use, ...]:
    found: list[Use] = ["answers", "learns", "saves"]
    trained = [track.train for track in tracks(config)]
    if any(one.gradient_checkpointing for one in trained):
        found.append("recomputes")
    parts = [getattr(one.trainable, part) for one in trained for part in Trainable.model_fields]
    if any(isinstance(treatment, Lora) for treatment in parts):
        found.append("lora")
    return (*found, *_vision_cache(config))


def about(loaded: LoadedModel, uses: tuple[Use, ...], *, role: str) -> tuple[LoadedModel, str]:
    """Return a model as its kept verdict has measured it, and a line about it; nothing is checked.

    Raises:
        AdapterError: a check that one of the uses needs has failed.
    """
    verdict = find_verdict(loaded, silent)
    needed = names_for(uses)
    if verdict is None or not all(name in verdict.findings for name in needed):
        return loaded, f"conformance: {role} unproven, {len(needed)} checks are made before the first step"
    require(verdict, uses=uses, path=loaded.path)
    way = "the generic path" if verdict.is_generic else f"adapter {verdict.adapter}"
    shared = verdict.facts.lines["prefix sharing"]
    line = f"{role} proven, {verdict.model_type} through {way}, {len(needed)} checks; prefix sharing {shared}"
    return settle(loaded, verdict), f"conformance: {line}"


def _vision_cache(config: RunConfig) -> tuple[Use, ...]:
    cache = config.vision_cache
    return ("vision_cache",) if cache.memory_gib or cache.disk_gib else ()
