"""The engines of a run: what is missing of them is said before anything is done."""

from collections.abc import Sequence
from dataclasses import replace

from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.alignment.alignment import Alignment
from vlm_distill.generation.backend import EngineConfig, Wanted
from vlm_distill.generation.engine import Sampling
from vlm_distill.generation.engines import live_config, require_engine
from vlm_distill.records import Author
from vlm_distill.runs.config import RunConfig
from vlm_distill.runs.folder import is_complete
from vlm_distill.runs.plan import HELD_OUT, TEACHER, Step
from vlm_distill.runs.teacher import load_options

GENERATE, EVALUATE = "generate.engine", "evaluate.engine"
# How everything that is measured is asked, whatever its length.
GREEDY = Sampling(temperature=0.0)


def require_engines(
    config: RunConfig,
    steps: Sequence[Step],
    *,
    teacher: LoadedModel | None,
    student: LoadedModel,
    alignment: Alignment,
) -> None:
    """Refuse an engine that cannot do what a step still has to generate; the models need no weights.

    What `alignment` suppresses is never generated for training.

    Raises:
        EngineError: one line that begins with the key of the engine.
    """
    waiting = [
        step
        for step in steps
        if step.kind in ("generate", "evaluate") and not is_complete(config.folder, step)
    ]
    for where, is_teacher, is_trained in sorted(
        {(_place(step), step.track == TEACHER, bool(step.starts_from)) for step in waiting}
    ):
        model = teacher if is_teacher else student
        assert model is not None
        # A trained student lies in a folder, whatever it was made of.
        asked = replace(model, path=str(config.folder / "*" / "model")) if is_trained else model
        trains = where == GENERATE
        author: Author = "teacher" if is_teacher else "student"
        wanted = Wanted(
            loaded=asked,
            options=_options(config, is_teacher=is_teacher),
            sampling=config.generate.sampling if trains else GREEDY,
            suppressed_ids=alignment.suppressed_by(author) if trains else (),
        )
        require_engine(_engine(config, where), wanted, where=where)


def about_live(config: RunConfig) -> list[str]:
    """Return the line about responses that are written during training, where another engine generates."""
    engine = config.generate.engine
    is_live = any(one.authors != one.stored_authors for one in (each.build() for each in config.objectives))
    if not is_live or live_config(engine) == engine:
        return []
    return [
        f"generate.engine: {engine.kind} samples the responses that are stored; those that a student writes "
        "during training are sampled in this process, from the weights as they are at that moment"
    ]


def _place(step: Step) -> str:
    """Return the key of the engine that a step asks."""
    return GENERATE if step.kind == "generate" and step.stage != HELD_OUT else EVALUATE


def _engine(config: RunConfig, where: str) -> EngineConfig:
    if where == GENERATE:
        return config.generate.engine
    assert config.evaluate is not None
    return config.evaluate.answers_with


def _options(config: RunConfig, *, is_teacher: bool) -> LoadOptions:
    if not is_teacher:
        return LoadOptions(trust_remote_code=config.student.trust_remote_code)
    assert config.teacher is not None
    return load_options(config.teacher, config.device)
