"""What the steps of a run share, each part made when the first step asks for it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from PIL import Image

from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.alignment.alignment import ALL_IDS, Alignment
from vlm_distill.alignment.pair import PairReport, pair_report, share_stops
from vlm_distill.batches import TrainItem
from vlm_distill.conformance.prove import settle, weighed
from vlm_distill.data.dataset import Dataset, open_dataset
from vlm_distill.data.draw import draw
from vlm_distill.data.images import ImageLoader, ImageStore
from vlm_distill.generation.backend import Asked
from vlm_distill.generation.engines import live_config
from vlm_distill.generation.prompts import prompt_lengths, readable_lengths
from vlm_distill.generation.transformers_engine import TransformersEngine, transformers_engine
from vlm_distill.models.feature_store import FeatureStore
from vlm_distill.models.skeleton import load_skeleton
from vlm_distill.models.vision_cache import with_vision_cache
from vlm_distill.processes import on_main
from vlm_distill.progress import Log
from vlm_distill.records import Example
from vlm_distill.runs.config import VISION_FEATURES, ModelConfig, RunConfig
from vlm_distill.runs.evaluator import Evaluator, HeldOut, draw_held_out
from vlm_distill.runs.folder import Cached
from vlm_distill.runs.plan import HELD_OUT, Step, compares
from vlm_distill.runs.proof import Proof
from vlm_distill.runs.teacher import Teacher, load, load_options
from vlm_distill.state import write_state
from vlm_distill.teacher_cache.fill import CachePlan, fill_cache
from vlm_distill.teacher_cache.store import CacheReader
from vlm_distill.teacher_cache.tiers import CacheConfig


class Context:
    """One run: its config, its folder, its steps by name, and what several of them read.

    All processes of a job ask for the parts in the same order, because they make some of them together.
    `seconds` is how long each step took in this process, `caches` holds what cache steps have filled in it,
    `num_unreadable` how many prompts are left out because a model cannot read them, `proof` the verdicts on
    its models.
    """

    def __init__(
        self, config: RunConfig, folder: Path, steps: Sequence[Step], *, proof: Proof, log: Log
    ) -> None:
        self.config, self.folder, self.proof, self.log = config, folder, proof, log
        self.steps: Mapping[str, Step] = {step.name: step for step in steps}
        self.seconds: dict[str, float] = {}
        self.caches: dict[str, CacheReader] = {}
        self.is_introduced = False
        self.num_unreadable: dict[str, int] = {}
        self._prompt_lengths: dict[bool, dict[str, int]] = {}
        self._student: tuple[str, LoadedModel] | None = None

    @cached_property
    def dataset(self) -> Dataset:
        return open_dataset(self.folder / "data")

    @cached_property
    def examples(self) -> list[Example]:
        """The training prompts that are used: those that the models of the run can read."""
        return self._readable(self.drawn_examples, what="training")

    @cached_property
    def drawn_examples(self) -> list[Example]:
        """The training prompts, `data.limit` of all, whatever the models can read."""
        examples, limit = self.dataset.train, self.config.data.limit
        if limit is None or limit >= len(examples):
            return list(examples)
        self.log(f"data: {limit:,} of {len(examples):,} training prompts are used (data.limit)")
        return draw(examples, limit, seed=self.config.seed)

    @cached_property
    def vision_cache(self) -> FeatureStore | None:
        cache = self.config.vision_cache
        if not cache.memory_gib and not cache.disk_gib:
            return None
        return FeatureStore(cache, folder=self.folder / VISION_FEATURES, log=self.log)

    @cached_property
    def teacher(self) -> Teacher | None:
        if self.config.teacher is None:
            return None
        assert self.proof.teacher is not None
        return Teacher(
            self.config.teacher,
            device=self.config.device,
            keeps_head_only=self.config.cache is not None,
            vision_cache=self.vision_cache,
            verdict=self.proof.teacher,
            log=self.log,
        )

    @cached_property
    def pair(self) -> PairReport | None:
        """How the student, as it is before any training, fits its teacher."""
        if self.teacher is None:
            return None
        return pair_report(self.teacher.loaded, self.first_student)

    @cached_property
    def first_student(self) -> LoadedModel:
        """The student as it is before any training, without its weights."""
        trusted = self.config.student.trust_remote_code
        skeleton = load_skeleton(self.student_name(""), trust_remote_code=trusted)
        return settle(skeleton, self.proof.student)

    @property
    def alignment(self) -> Alignment:
        """Which ids of both models are compared; all of a student without a teacher."""
        return self.pair.alignment if self.pair else ALL_IDS

    @cached_property
    def held_out_prompts(self) -> list[Example]:
        """The held-out prompts on which students are compared, none where there is nothing to compare on."""
        if not compares(self.config):
            return []
        assert self.config.evaluate is not None
        drawn = draw_held_out(self.config.evaluate, self.dataset.held_out, log=self.log)
        return self._readable(drawn, what="held-out")

    @cached_property
    def held_out_answers(self) -> HeldOut | None:
        """The held-out prompts with the teacher's answers; None where there is nothing to compare on."""
        examples = self.held_out_prompts
        if not examples:
            return None
        assert self.teacher is not None
        folder = self.folder / self.steps[f"{HELD_OUT}.generate"].folder
        answers = self.evaluator().answers(self.asked_teacher(), examples, folder=folder, author="teacher")
        return HeldOut(
            examples=examples,
            responses={one.example_id: one for one in self.alignment.for_student([*answers.values()])},
            teacher=self.teacher,
            alignment=self.alignment,
            load_images=self.load_images,
        )

    @cached_property
    def held_out(self) -> HeldOut | None:
        """The same with the teacher's hidden states, where the run caches what its teacher says."""
        found = self.held_out_answers
        if found is None or self.config.cache is None:
            return found
        # Agreement compares whole distributions, whatever tier is trained on.
        plan = self.cache_plan(CacheConfig(batch_size=self.config.cache.batch_size))
        answered = [one for one in found.examples if one.id in found.responses]
        items = [TrainItem(example=one, responses=(found.responses[one.id],)) for one in answered]
        store = fill_cache(plan, items, name=HELD_OUT)
        self.mark_cached(self.steps[f"{HELD_OUT}.cache"], num_items=len(items))
        return replace(found, cache=CacheReader([store], tier=plan.tier))

    def evaluator(self, held_out: HeldOut | None = None) -> Evaluator:
        assert self.config.evaluate is not None
        images = ImageStore(self.folder / "eval" / "images")
        return Evaluator(config=self.config.evaluate, images=images, log=self.log, held_out=held_out)

    def load_images(self, example: Example) -> list[Image.Image]:
        return self.dataset.images.load_images(example)

    def _readable(self, examples: list[Example], *, what: str) -> list[Example]:
        """Return the prompts that teacher and student can encode, where rows that cannot be used are skipped.

        Where they stop a run, encoding will.

        Raises:
            AdapterError: a model can read none of them.
        """
        if not self.dataset.skips_bad_rows:
            return examples
        readers = [self.first_student] if self.teacher is None else [self.teacher.loaded, self.first_student]
        for loaded in readers:
            examples = self._read_by(loaded, examples, what=what)
        return examples

    def _read_by(self, loaded: LoadedModel, examples: list[Example], *, what: str) -> list[Example]:
        lengths, refusal = on_main(lambda: readable_lengths(loaded, self.load_images, examples))
        self._prompt_lengths.setdefault(self._is_teacher(loaded), {}).update(lengths)
        if refusal is None:
            return examples
        if not lengths:
            raise refusal
        num_refused = len(examples) - len(lengths)
        self.log(f"{num_refused:,} {what} prompts are left out: {loaded.path} cannot read them: {refusal}")
        self.num_unreadable[what] = self.num_unreadable.get(what, 0) + num_refused
        return [example for example in examples if example.id in lengths]

    def prompt_lengths(self, loaded: LoadedModel) -> dict[str, int]:
        """Return the tokens of every training prompt for the teacher or a student, by example id.

        All students of a run read prompts in the same way, so that they are counted once.
        """
        known = self._prompt_lengths.setdefault(self._is_teacher(loaded), {})
        # Where bad rows are skipped, they were counted when it was tried whether the model can read them.
        if missing := [example for example in self.examples if example.id not in known]:
            counted = on_main(lambda: prompt_lengths(loaded, self.load_images, missing))
            known.update(zip((example.id for example in missing), counted, strict=True))
        return known

    def _is_teacher(self, loaded: LoadedModel) -> bool:
        return self.teacher is not None and loaded is self.teacher.loaded

    def asked_teacher(self) -> Asked:
        """Return the teacher as an engine is opened with it."""
        assert self.teacher is not None
        assert self.config.teacher is not None
        return Asked(
            loaded=self.teacher.loaded,
            load_images=self.load_images,
            options=load_options(self.config.teacher, self.config.device),
            full=self.teacher.full,
        )

    def asked_student(self, stage: str) -> Asked:
        """Return the student of a stage as an engine is opened with it."""
        return self._asked(self.student(stage))

    def live_engine(self, student: LoadedModel, load_images: ImageLoader) -> TransformersEngine:
        """Return the engine inside this process, with which a student answers as it is at that moment."""
        asked = replace(
            self._asked(student),
            load_images=load_images,
            suppressed_ids=self.alignment.student_suppressed,
        )
        return transformers_engine(live_config(self.config.generate.engine), asked)

    def _asked(self, student: LoadedModel) -> Asked:
        options = LoadOptions(trust_remote_code=self.config.student.trust_remote_code)
        return Asked(loaded=student, load_images=self.load_images, options=options)

    def cache_plan(self, config: CacheConfig | None = None) -> CachePlan:
        """Return what is cached of the teacher; `config` replaces that of the run."""
        used = config or self.config.cache
        assert used is not None
        assert self.teacher is not None
        assert self.pair is not None
        return CachePlan(
            config=used,
            folder=self.folder / "cache",
            light=self.teacher.loaded,
            body=self.teacher.full,
            alignment=self.pair.alignment,
            student_width=self.pair.student.vocabulary_width,
            load_images=self.load_images,
            log=self.log,
        )

    def mark_cached(self, step: Step, *, num_items: int) -> None:
        """Record that the cache of a step is full."""
        on_main(lambda: write_state(self.folder / f"{step.folder}.json", Cached(items=num_items)))

    def student_name(self, stage: str) -> str:
        """Return the model that a stage has trained, for an empty name the student before any training."""
        if stage:
            return str(self.folder / self.steps[f"{stage}.train"].folder / "model")
        return self.config.student.model or str(self.folder / self.steps["student.prepare"].folder)

    def student(self, stage: str) -> LoadedModel:
        """Return the student of a stage, loaded from disk, so that what is used is exactly what was saved.

        The last one stays in memory for the next step. It is in float32, in which its weights are updated,
        and stops where its labels end and where its teacher stops.
        """
        if self._student is None or self._student[0] != stage:
            self._student = None
            trusted = self.config.student.trust_remote_code
            model = ModelConfig(model=self.student_name(stage), trust_remote_code=trusted)
            loaded = load(model, self.config.device, self.proof.student)
            if not stage:
                loaded = weighed(loaded, log=self.log)
            loaded = with_vision_cache(loaded, self.vision_cache)
            teacher = self.teacher.loaded if self.teacher else None
            self._student = (stage, share_stops(loaded, teacher, self.alignment))
        return self._student[1]

    def take_student(self, stage: str) -> LoadedModel:
        """Return the student of a stage to be trained in place; nobody else gets this one."""
        student, self._student = self.student(stage), None
        return student

    def drop_student(self) -> None:
        """Free the memory of the student that was kept for the next step."""
        self._student = None

    def keep_features(self) -> None:
        """Write down the features of images that are not on the disk yet."""
        if self.vision_cache is not None:
            self.vision_cache.flush()

    def release_teacher(self) -> None:
        """Free the memory of all but the teacher's output layer, where training needs no more."""
        if self.teacher is not None:
            self.teacher.release()
