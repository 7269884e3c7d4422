"""What the stages of a run share, and which stage of which track one is."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.alignment.pair import PairReport, share_stops
from vlm_distill.data.recipe import Dataset
from vlm_distill.models.feature_store import FeatureStore
from vlm_distill.models.vision_cache import with_vision_cache
from vlm_distill.progress import Log
from vlm_distill.records import Example
from vlm_distill.runs.config import ModelConfig, RunConfig
from vlm_distill.runs.evaluator import HeldOut
from vlm_distill.runs.teacher import TeacherModel, load
from vlm_distill.teacher_cache.fill import CachePlan
from vlm_distill.teacher_cache.store import CacheConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What every stage of one run shares. `examples` are the training prompts after `data.limit`.

    `teacher` is its output layer alone where there is a cache; `source` gives the whole of it.
    """

    config: RunConfig
    folder: Path
    log: Log
    dataset: Dataset
    examples: list[Example]
    teacher: LoadedModel | None
    pair: PairReport | None
    held_out: HeldOut | None
    vision_cache: FeatureStore | None = None
    source: TeacherModel | None = None

    @property
    def vocabulary(self) -> slice:
        """The ids that both models define."""
        return self.pair.vocabulary if self.pair else slice(None)

    def load_images(self, example: Example) -> list[Image.Image]:
        return [self.dataset.images.load(image) for image in example.images]

    def cache_plan(self, config: CacheConfig | None = None) -> CachePlan:
        """Return what is cached of the teacher; `config` replaces that of the run."""
        used = config or self.config.cache
        assert used is not None
        assert self.source is not None
        return CachePlan(
            config=used,
            folder=self.folder / "cache",
            light=self.source.loaded,
            body=self.source.body,
            vocabulary=self.vocabulary,
            load_images=self.load_images,
            log=self.log,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """Which round of which track a stage is: 0 is the warm-up, `track` the name of a control or empty."""

    round: int
    num_rounds: int = 1
    track: str = ""

    @property
    def label(self) -> str:
        if not self.track:
            return f"round {self.round}"
        return self.track if self.num_rounds == 1 else f"{self.track} round {self.round}"


def load_student(context: Context, name: str | Path) -> LoadedModel:
    """Load a student from disk, so that what is measured and trained on is exactly what was saved.

    It is loaded in float32, in which its weights are updated, and stops where its teacher stops.
    """
    settings = context.config.student
    model = ModelConfig(model=str(name), trust_remote_code=settings.trust_remote_code)
    student = with_vision_cache(load(model, context.config.device), context.vision_cache)
    return share_stops(student, context.teacher) if context.teacher else student
