"""A task of eight questions about four pictures, and engines that answer it from a script."""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.engines import IDENTITY
from tests.scripted_engine import ScriptedEngine
from tests.tiny import TEXTS, picture
from vlm_distill.config import decode
from vlm_distill.data.images import ImageStore
from vlm_distill.errors import EngineError
from vlm_distill.evaluation.harness import Answerer, evaluate_task
from vlm_distill.evaluation.results import TaskResult
from vlm_distill.evaluation.selection import Selection
from vlm_distill.evaluation.task import Task
from vlm_distill.generation.engine import Completion, Engine, Identity, Sampling
from vlm_distill.records import Example
from vlm_distill.students.tokenizer import BpeSettings, train_tokenizer

COLORS = ("red", "green", "blue", "black")
ROWS = [
    row
    for color in COLORS
    for row in (
        {"id": f"{color}-what", "question": "What color is it?", "answer": color, "image": f"{color}.png"},
        {"id": f"{color}-red", "question": "Is it red?", "answer": "no", "image": f"{color}.png"},
    )
]
ANSWERS = {
    row["id"]: ["yes." if row["id"] == "red-red" else " Red" if "what" in row["id"] else "no."]
    for row in ROWS
}
TOKENIZER = train_tokenizer(TEXTS, settings=BpeSettings(vocab_size=300))


@dataclass
class CountingEngine:
    """Passes everything on to a real engine, counts prompts, and fails after `budget` of them."""

    engine: Engine
    budget: int = 1000
    asked: list[Example] = field(default_factory=list)

    @property
    def settings(self) -> Mapping[str, str]:
        return self.engine.settings

    def plan(self, examples: Sequence[Example], sampling: Sampling) -> list[list[int]]:
        return self.engine.plan(examples, sampling)

    def generate(self, examples: Sequence[Example], sampling: Sampling) -> list[Completion]:
        if len(self.asked) + len(examples) > self.budget:
            raise EngineError("the power went out")
        self.asked += examples
        return self.engine.generate(examples, sampling)


def scripted(answers: Mapping[str, Sequence[str]] = ANSWERS, **options: Any) -> CountingEngine:
    engine = ScriptedEngine(script=answers, tokenizer=TOKENIZER, stop_id=TOKENIZER.eos_token_id, batch_size=2)
    return CountingEngine(engine=engine, **options)


@dataclass
class Bench:
    """A folder with the data set, and what an evaluation needs."""

    folder: Path

    def task(self, **changes: Any) -> Task:
        columns = {"id": "id", "question": "question", "references": "answer", "image": "image"}
        data = {"kind": "files", "paths": str(self.folder / "rows.jsonl"), "columns": columns}
        metrics = [{"kind": "exact_match", "ignore_punctuation": True}]
        subsets = {"open": {"references_not_in": ["yes", "no"]}}
        values = {
            "name": "colors",
            "version": 1,
            "data": data,
            "prompt": "{{ question }}",
            "metrics": metrics,
        }
        return decode(Task, {**values, "subsets": subsets, "verified": True, **changes}, where="colors.yaml")

    @property
    def images(self) -> ImageStore:
        return ImageStore(self.folder / "images")

    def evaluate(
        self,
        engine: Engine,
        *,
        run: str = "run",
        task: Task | None = None,
        identity: Identity = IDENTITY,
        **options: Any,
    ) -> TaskResult:
        self.log: list[str] = []
        return evaluate_task(
            task or self.task(),
            Answerer(identity=identity, open_engine=lambda: nullcontext(engine)),
            selection=Selection(**options),
            folder=self.folder / run,
            images=self.images,
            log=self.log.append,
        )


def write_bench(folder: Path) -> Bench:
    for color in COLORS:
        picture(color).save(folder / f"{color}.png")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return Bench(folder=folder)
