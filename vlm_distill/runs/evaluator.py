"""What a run measures of a model.

The suite, the suite with permuted images, and agreement with the teacher on held-out prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.alignment.alignment import Alignment
from vlm_distill.data.images import ImageLoader, ImageStore
from vlm_distill.data.store import all_stored
from vlm_distill.evaluation.agreement import FORWARD_KL, Agreement, Answers, agreement
from vlm_distill.evaluation.compare import same_answer
from vlm_distill.evaluation.harness import Answerer, evaluate_task, is_answered
from vlm_distill.evaluation.measures import Measured
from vlm_distill.evaluation.results import TaskResult
from vlm_distill.evaluation.selection import Selection, take_clusters
from vlm_distill.evaluation.task import load_suite, load_task
from vlm_distill.files import hash_json
from vlm_distill.generation.backend import Asked
from vlm_distill.generation.engine import Sampling
from vlm_distill.generation.engines import opened, opened_once
from vlm_distill.generation.work import Job, generate_responses
from vlm_distill.losses.divergences import ForwardKL, ReverseKL
from vlm_distill.processes import on_main
from vlm_distill.progress import Log
from vlm_distill.records import Author, Example, Response
from vlm_distill.runs.config import EvaluateConfig
from vlm_distill.runs.teacher import Teacher
from vlm_distill.state import find_state, write_state
from vlm_distill.teacher_cache.store import CacheReader

# What is measured on held-out prompts, and the student's answers to them.
AGREEMENT, HELD_OUT_ANSWERS = "agreement.json", "held_out"


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """What was measured on held-out prompts, in agreement.json; `values` are keyed as MEASURES."""

    key: str
    values: Mapping[str, float | None]
    num_tokens: int
    num_examples: int
    num_without_response: int
    num_too_long: int = 0
    num_own_too_long: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """The prompts on which students are compared with their teacher, and its greedy responses to them.

    `cache` holds the teacher's hidden states of these responses, where the teacher is not kept in memory.
    """

    examples: Sequence[Example]
    responses: Mapping[str, Response]
    teacher: Teacher
    alignment: Alignment
    load_images: ImageLoader
    cache: CacheReader | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluator:
    """Measures models as a config says; `images` keeps the pictures of the suite.

    Without `held_out` nothing is compared with a teacher. `engine_key` is where the engine was given.
    """

    config: EvaluateConfig
    images: ImageStore
    log: Log
    held_out: HeldOut | None = None
    engine_key: str = "evaluate.engine"

    def measure(self, asked: Asked, *, label: str, track: str, folder: Path) -> Measured:
        """Return everything that is measured of one model; what `folder` has of it is not computed again."""
        of_suite = replace(asked, load_images=self.images.load_images)
        with opened_once(self.config.answers_with, of_suite, where=self.engine_key) as open_engine:
            model = Answerer(identity=asked.identity, open_engine=open_engine)
            results = self._score(model, label=label, folder=folder, shuffle=False)
            shuffles = bool(results) and self.config.shuffle_images
            shuffled = self._score(model, label=label, folder=folder, shuffle=True) if shuffles else {}
        agreed = {} if self.held_out is None else self._compare(asked, self.held_out, folder=folder)
        return Measured(
            label=label,
            track=track,
            fingerprint=asked.loaded.fingerprint,
            results=results,
            shuffled=shuffled,
            values=agreed,
        )

    def live(self, student: LoadedModel) -> Agreement:
        """Return how close a student, as it is now, is to its teacher on the teacher's answers."""
        assert self.held_out is not None
        return self._agreement(student, self.held_out.teacher.loaded, self.held_out)

    def answers(
        self, asked: Asked, examples: Sequence[Example], *, folder: Path, author: Author
    ) -> dict[str, Response]:
        """Return greedy answers to held-out prompts by example id."""
        job = Job(
            examples=examples,
            sampling=Sampling(temperature=0.0, max_new_tokens=self.config.agreement_tokens),
            identity=asked.identity,
            author=author,
            round=0,
            label=f"held-out answers of the {author}",
            bound="evaluate.agreement_tokens",
        )
        engine = self.config.answers_with
        responses = generate_responses(
            job, lambda: opened(engine, asked, where=self.engine_key), folder=folder, log=self.log
        )
        return {response.example_id: response for response in responses}

    def _score(self, model: Answerer, *, label: str, folder: Path, shuffle: bool) -> dict[str, TaskResult]:
        """Return the results on every task of the suite, by task name; none without a suite."""
        if self.config.suite is None:
            return {}
        results = {}
        for entry in load_suite(self.config.suite).tasks:
            limits = [limit for limit in (entry.limit, self.config.limit) if limit is not None]
            result = evaluate_task(
                load_task(entry.task),
                model,
                selection=Selection(limit=min(limits, default=None), shuffle_images=shuffle),
                folder=folder,
                images=self.images,
                log=lambda line: self.log(f"{label}: {line}"),
            )
            results[result.task] = result
        return results

    def _compare(self, asked: Asked, held_out: HeldOut, *, folder: Path) -> dict[str, float | None]:
        """Return the values of MEASURES on the held-out prompts.

        They are stored and not computed twice. The own KL of a student that answers nothing is None.
        """
        student = asked.loaded
        key = self._key(student, held_out)
        saved = on_main(lambda: find_compared(folder))
        if saved is not None and saved.key == key:
            return dict(saved.values)
        found = on_main(lambda: self.live(student))
        answers = self.answers(asked, held_out.examples, folder=folder / HELD_OUT_ANSWERS, author="student")
        equal = [
            id in answers and same_answer(answers[id].text, response.text)
            for id, response in held_out.responses.items()
        ]
        own = on_main(lambda: self._own(student, answers, held_out))
        values = {
            "token_kl": found.token_kl,
            "own_kl": own.token_kl if own else None,
            "top1": found.top1,
            "same_answer": sum(equal) / len(equal),
        }
        compared = Compared(
            key=key,
            values=values,
            num_tokens=found.num_tokens,
            num_examples=len(equal),
            num_without_response=found.num_without_response,
            num_too_long=found.num_too_long,
            num_own_too_long=own.num_too_long if own else 0,
        )
        if num_left_out := compared.num_too_long + compared.num_own_too_long:
            self.log(f"agreement: {num_left_out:,} answers are too long with their prompts and left out")
        on_main(lambda: write_state(folder / AGREEMENT, compared))
        return values

    def _own(
        self, student: LoadedModel, answers: Mapping[str, Response], held_out: HeldOut
    ) -> Agreement | None:
        """Return what the teacher thinks of the student's answers; None without any.

        No cache knows them, so the full teacher reads them.
        """
        if not answers:
            return None
        own = replace(held_out, responses=answers, cache=None)
        return self._agreement(student, held_out.teacher.full(), own, divergence=ReverseKL())

    def _agreement(
        self,
        student: LoadedModel,
        teacher: LoadedModel,
        held_out: HeldOut,
        *,
        divergence: ForwardKL | ReverseKL = FORWARD_KL,
    ) -> Agreement:
        answers = Answers(
            examples=held_out.examples,
            responses=held_out.responses,
            load_images=held_out.load_images,
            cache=held_out.cache,
        )
        return agreement(
            student,
            teacher,
            answers,
            batch_size=self.config.batch_size,
            alignment=held_out.alignment,
            divergence=divergence,
        )

    def _key(self, student: LoadedModel, held_out: HeldOut) -> str:
        teacher_ids = [[one.example_id, one.token_ids] for one in held_out.responses.values()]
        ids = held_out.alignment.student.key(len(student.head.weight))
        settings = [self.config.agreement_tokens, *ids, "token and own KL"]
        teacher = held_out.teacher.loaded.fingerprint
        return hash_json([student.fingerprint, teacher, hash_json(teacher_ids), settings])


def find_compared(folder: Path) -> Compared | None:
    """Return what an evaluation has measured on held-out prompts; DataError for a damaged file."""
    path = folder / AGREEMENT
    return find_state(Compared, path, remedy=f"delete {path}, and the run measures it again")


def has_agreement(folder: Path) -> bool:
    """Return whether the folder of an evaluation has what is measured on held-out prompts, or the answers."""
    return (folder / AGREEMENT).exists() or all_stored(folder / HELD_OUT_ANSWERS)


def has_answers(folder: Path, suite: str | None, *, shuffle_images: bool) -> bool:
    """Return whether the folder of an evaluation has all answers to a suite, with permuted images too."""
    tasks = [load_task(entry.task) for entry in load_suite(suite).tasks] if suite else []
    asked = {False, shuffle_images}
    return all(is_answered(folder, task, shuffle_images=one) for task in tasks for one in asked)


def draw_held_out(config: EvaluateConfig, held_out: Sequence[Example], *, log: Log) -> list[Example]:
    """Return the held-out prompts on which students are compared: whole images, none without any."""
    if not held_out:
        log("agreement with the teacher: not measured, because the recipe holds nothing out")
        return []
    clusters = [example.images[0] if example.images else example.id for example in held_out]
    return take_clusters(held_out, clusters, limit=config.agreement_examples)
