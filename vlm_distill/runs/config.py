"""The run: one record for every YAML in configs/, assembled from records that lie beside their owners."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from vlm_distill.adapters.adapter import Placement
from vlm_distill.config import (
    Kinds,
    PathText,
    Record,
    apply_overrides,
    decode,
    find_yaml,
    read_yaml,
    user_path,
)
from vlm_distill.data.augment import Augment
from vlm_distill.generation.backend import EngineConfig
from vlm_distill.generation.engine import Sampling
from vlm_distill.generation.engines import AnyEngine
from vlm_distill.generation.transformers_engine import TransformersEngineConfig
from vlm_distill.losses import KnownObjective, ObjectiveConfig
from vlm_distill.models.feature_store import VisionCacheConfig
from vlm_distill.records import Author
from vlm_distill.students.build import BuildConfig
from vlm_distill.students.pruning import ShrinkConfig
from vlm_distill.teacher_cache.tiers import CacheConfig, require_tier
from vlm_distill.training.config import TrainConfig

Objective = Annotated[ObjectiveConfig, Kinds("vlm_distill.objectives", get_args(KnownObjective))]
# Names become folders.
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"
STARTS = ("student", "random", "shrunk")
VISION_FEATURES = "vision_features"
RESERVED = (
    "teacher",
    *STARTS,
    "warmup",
    "warm-up",
    "data",
    "eval",
    "responses",
    "held_out",
    "cache",
    VISION_FEATURES,
    "student_at_start",
    "images",
)
Dtype = Literal["float32", "bfloat16", "float16", "auto"]


class DataConfig(Record):
    """Which recipe is prepared.

    `overrides` change it (`split.held_out=0.2`), `limit` keeps that many training examples. `path` is a table
    of one's own that replaces the recipe (data/own_table.py).
    """

    recipe: PathText | None = None
    path: PathText | None = None
    overrides: tuple[str, ...] = ()
    limit: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_origin(self) -> "DataConfig":
        if self.recipe is None and self.path is None:
            raise ValueError("expected `recipe`, or `path` of a table with prompts")
        return self


class ModelConfig(Record):
    """A model that exists: a folder, a hub id, `bundled:NAME`, or a GGUF file.

    `placement` says where its weights live, `quantisation` is the quantization config of transformers
    (`{quant_method: bitsandbytes, load_in_4bit: true}`).
    """

    model: PathText
    dtype: Dtype = "float32"
    trust_remote_code: bool = False
    placement: Placement = "same_device"
    quantisation: dict[str, Any] | None = None


class StudentConfig(Record):
    """A model that exists, one that is built from parts, or the teacher with fewer layers; exactly one.

    It is trained in float32; `train.precision` says in which precision its forward runs.
    """

    model: PathText | None = None
    build: BuildConfig | None = None
    shrink: ShrinkConfig | None = None
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _one_origin(self) -> "StudentConfig":
        if sum(one is not None for one in (self.model, self.build, self.shrink)) != 1:
            raise ValueError("expected exactly one of `model`, `build` and `shrink`")
        return self


class WarmupConfig(Record):
    """Training of the student before the first round.

    `seqkd` trains on teacher responses (no labels), `sft` on references.
    """

    train: TrainConfig
    objective: Objective
    augment: Augment = Augment()


class GenerateConfig(Record):
    """How teacher and student responses are sampled."""

    # Validated: its kind may be taken by another package.
    engine: AnyEngine = Field(default=TransformersEngineConfig(), validate_default=True)
    sampling: Sampling = Sampling(temperature=0.8, top_p=0.95)


class ControlConfig(Record):
    """A student for comparison.

    It starts from the same warm-up and trains with this objective on as many tokens as all rounds together,
    in `rounds` equal parts, each with new student responses where the objective stores them. An objective on
    pairs takes as many steps as the others with half of their `batch_size`: a prompt has two responses.
    """

    name: str = Field(pattern=NAME)
    objective: Objective
    rounds: int = Field(default=1, ge=1, le=1000)
    learning_rate: float | None = Field(default=None, gt=0, le=1e6, description="default: that of `train`")
    batch_size: int | None = Field(default=None, ge=1, le=10**6, description="default: that of `train`")

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str) -> str:
        if name in RESERVED or name.startswith("round"):
            raise ValueError(f"names another stage; expected none of {', '.join(RESERVED)}, round...")
        if re.search(r"_round_\d+$", name):
            raise ValueError("ends like the folder of a control's round; expected another name")
        return name


class EvaluateConfig(Record):
    """What is measured after each stage: a suite, agreement with the teacher on held-out prompts, or both.

    `limit` caps the questions of each task (whole images are drawn), `agreement_examples` the held-out
    prompts on which student and teacher are compared, on greedy responses of up to `agreement_tokens`;
    `shuffle_images` repeats the suite with permuted images for the table's drop. `engine` answers all of it,
    by default this process, which decodes `batch_size` responses at once where `engine` says no other number;
    as many are compared with the teacher at once.
    """

    suite: PathText | None = None
    limit: int | None = Field(default=None, ge=1)
    every_round: bool = True
    agreement_examples: int = Field(default=500, ge=0)
    agreement_tokens: int = Field(default=64, ge=1, le=10**6)
    shuffle_images: bool = True
    batch_size: int = Field(default=64, ge=1, le=10**6)
    engine: AnyEngine | None = None

    @field_validator("engine")
    @classmethod
    def _decodes_as_many(cls, engine: EngineConfig | None, info: Any) -> EngineConfig | None:
        if not isinstance(engine, TransformersEngineConfig) or "batch_size" in engine.model_fields_set:
            return engine
        # `batch_size` is missing where it is refused itself.
        return engine.model_copy(update={name: info.data[name] for name in {"batch_size"} & info.data.keys()})

    @property
    def answers_with(self) -> EngineConfig:
        return self.engine or TransformersEngineConfig(batch_size=self.batch_size)


class RunConfig(Record):
    """A whole run.

    Without a teacher there are no rounds: the student is warmed up on references and evaluated. With `cache`
    the teacher is in memory only while it answers, is evaluated or fills the cache, never during training.
    """

    name: str = Field(pattern=NAME)
    seed: int = Field(default=0, ge=0, lt=2**32)
    output: PathText | None = None
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = "auto"
    data: DataConfig
    teacher: ModelConfig | None = None
    student: StudentConfig
    warmup: WarmupConfig | None = None
    rounds: int = Field(default=1, ge=0, le=1000)
    generate: GenerateConfig = Field(default_factory=GenerateConfig)
    objective: Objective | None = None
    train: TrainConfig | None = None
    controls: tuple[ControlConfig, ...] = ()
    evaluate: EvaluateConfig | None = None
    vision_cache: VisionCacheConfig = VisionCacheConfig()
    cache: CacheConfig | None = None

    @model_validator(mode="after")
    def _complete(self) -> "RunConfig":
        if self.rounds and (self.objective is None or self.train is None):
            raise ValueError("rounds need `objective` and `train`; set `rounds: 0` to run the warm-up only")
        if not self.rounds and self.warmup is None:
            raise ValueError("without rounds and without `warmup` there is nothing to train")
        if not self.rounds and self.controls:
            raise ValueError("`controls` compare with rounds, and there are none")
        names = [control.name for control in self.controls]
        if len(set(names)) < len(names):
            raise ValueError("`controls` need distinct names, which become folders")
        if self.teacher is None and (self.rounds or (self.warmup and not _on_labels(self.warmup.objective))):
            raise ValueError(
                "this objective needs `teacher`; without one only `warmup` with an objective on labels, such "
                "as `objective: {kind: sft}`, can run"
            )
        if self.teacher is None and self.student.shrink is not None:
            raise ValueError("`student.shrink` takes layers of a teacher: add `teacher`")
        if self.warmup and self.train and self.warmup.train.precision != self.train.precision:
            raise ValueError("`warmup.train.precision` and `train.precision` must be equal in one run")
        return self

    @model_validator(mode="after")
    def _cache_suffices(self) -> "RunConfig":
        if self.cache is None:
            return self
        if self.teacher is None:
            raise ValueError("`cache` keeps what a teacher computed: add `teacher`")
        warmup = self.warmup
        if warmup and warmup.augment != Augment() and warmup.objective.build().needs_teacher:
            raise ValueError(
                "`warmup.augment` changes the pictures at every step, and the teacher's view of them cannot "
                "be cached; leave one of `cache` and `augment` out"
            )
        for objective in self.objectives:
            require_tier(objective.build(), self.cache, name=objective.kind)
        return self

    @property
    def objectives(self) -> list[ObjectiveConfig]:
        """Everything that is trained with, in the order of the stages."""
        rounds = [self.objective, *(control.objective for control in self.controls)] if self.rounds else []
        found = [self.warmup.objective if self.warmup else None, *rounds]
        return [objective for objective in found if objective is not None]

    @property
    def folder(self) -> Path:
        return user_path(self.output) if self.output else Path("runs") / self.name


def _on_labels(objective: ObjectiveConfig) -> bool:
    """Return whether an objective trains on references and on nothing that a model says."""
    built = objective.build()
    return not built.needs_teacher and built.authors == {"reference"}


def read_by_teacher(config: RunConfig) -> frozenset[Author]:
    """Return the authors whose responses some objective compares with the teacher."""
    built = [objective.build() for objective in config.objectives]
    return frozenset[Author]().union(*(one.authors for one in built if one.needs_teacher))


def load_run(name: str, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Return the run that a path or the name of a shipped config means, with dotted overrides applied.

    Raises:
        ConfigError: one line with the file, the dotted path of each wrong key and the nearest known one.
    """
    path = find_yaml(name, folder="configs")
    values: dict[str, Any] = apply_overrides(read_yaml(path), overrides)
    return decode(RunConfig, values, where=str(path))
