"""Engines on tiny models, the prompts that they answer, and jobs whose engine notes what it was asked for."""

import contextlib
import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from PIL import Image as Picture

from tests.scripted_engine import ScriptedEngine
from tests.tiny import example, picture, tiny_llava, tiny_text_model
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.errors import EngineError
from vlm_distill.generation.engine import Completion, Engine, Identity, OpenEngine, Sampling
from vlm_distill.generation.transformers_engine import TransformersEngine
from vlm_distill.generation.vllm_engine import VllmEngine, VllmEngineConfig
from vlm_distill.generation.work import Job, generate_responses
from vlm_distill.records import Example, Response

QUESTIONS = (
    "What color is it?",
    "Shape?",
    "Is there a red circle in the image, or a blue one?",
    "no",
    "yes no yes",
    "red?",
)
COLORS = ("red", "green", "blue", "black")
KINDS = ("text", "llava")
EXAMPLES = [example(f"e{number}", "?") for number in range(7)]
SCRIPT = {one.id: (f"answer {one.id}", f"other {one.id}") for one in EXAMPLES}
IDENTITY = Identity(fingerprint="a model", stop_ids=(1,))
SAMPLING = Sampling(num_samples=2, max_new_tokens=32)
VLLM_INSTALLED = importlib.util.find_spec("vllm") is not None
# Small, and in the precision that the transformers engine is compared in.
VLLM_CONFIG = VllmEngineConfig(
    batch_size=4,
    dtype="float32",
    gpu_memory_utilization=0.1,
    max_model_len=512,
    max_num_seqs=16,
    enforce_eager=True,
)


def load_pictures(one: Example) -> list[Picture.Image]:
    return [picture(COLORS[sum(map(ord, name)) % 4]) for name in one.images]


def with_many_stops(loaded: LoadedModel) -> LoadedModel:
    """Random models hardly ever emit the one stop token: let every fifth token stop them."""
    return dataclasses.replace(loaded, stop_ids=(*loaded.stop_ids, *range(10, 300, 5)))


def engine_of(kind: str, *, batch_size: int = 4, loaded: LoadedModel | None = None) -> TransformersEngine:
    loaded = loaded or with_many_stops(tiny_text_model() if kind == "text" else tiny_llava())
    return TransformersEngine(loaded=loaded, load_images=load_pictures, batch_size=batch_size)


def prompts_of(kind: str) -> list[Example]:
    images = {"text": [0] * 6, "llava": [1, 1, 2, 0, 1, 2]}[kind]
    return [example(str(i), text, num_images=images[i]) for i, text in enumerate(QUESTIONS)]


def run_plan(
    engine: TransformersEngine, examples: list[Example], sampling: Sampling
) -> dict[tuple[str, int], Completion]:
    batches = [
        engine.generate([examples[i] for i in batch], sampling) for batch in engine.plan(examples, sampling)
    ]
    return {(one.example_id, one.sample_index): one for batch in batches for one in batch}


def vllm_engine_of(loaded: LoadedModel, **changes: object) -> VllmEngine:
    config = VLLM_CONFIG.model_copy(update=changes)
    return VllmEngine(loaded=loaded, load_images=load_pictures, config=config)


@dataclasses.dataclass
class Recorded:
    """An engine that notes which examples it was asked for, can abort all answers and lack room for some."""

    inner: Engine
    asked: list[str] = dataclasses.field(default_factory=list)
    abort: bool = False
    too_long: Sequence[str] = ()

    @property
    def settings(self) -> Mapping[str, str]:
        return self.inner.settings

    def plan(self, examples: Sequence[Example], sampling: Sampling) -> list[list[int]]:
        fits = [i for i, one in enumerate(examples) if one.id not in self.too_long]
        plan = self.inner.plan([examples[i] for i in fits], sampling)
        return [[fits[place] for place in batch] for batch in plan]

    def generate(self, examples: Sequence[Example], sampling: Sampling) -> list[Completion]:
        self.asked += [one.id for one in examples]
        completions = self.inner.generate(examples, sampling)
        return (
            [dataclasses.replace(one, finish="aborted") for one in completions] if self.abort else completions
        )


def scripted(script: Mapping[str, Sequence[str]] = SCRIPT, **changes: object) -> Recorded:
    tokenizer = tiny_text_model().tokenizer
    engine = ScriptedEngine(script=script, tokenizer=tokenizer, stop_id=tokenizer.eos_token_id, batch_size=2)
    return Recorded(dataclasses.replace(engine, **changes))


def generate(
    engine: Engine, folder: Path, *, lines: list[str] | None = None, **changes: object
) -> list[Response]:
    return generate_with(lambda: contextlib.nullcontext(engine), folder, lines=lines, **changes)


def generate_with(
    open_engine: OpenEngine, folder: Path, *, lines: list[str] | None = None, **changes: object
) -> list[Response]:
    job = Job(
        examples=EXAMPLES,
        sampling=SAMPLING,
        identity=IDENTITY,
        author="teacher",
        round=1,
        label="teacher",
    )
    log = (lambda _: None) if lines is None else lines.append
    return generate_responses(dataclasses.replace(job, **changes), open_engine, folder=folder, log=log)


def no_engine() -> AbstractContextManager[Engine]:
    """Stand for an engine that is not installed."""
    raise EngineError("this engine is not installed")


def llava_engine() -> Engine:
    return engine_of("llava", batch_size=2)


def llava_job(engine: Engine, folder: Path) -> list[Response]:
    return llava_job_with(lambda: contextlib.nullcontext(engine), folder)


def llava_job_with(open_engine: OpenEngine, folder: Path) -> list[Response]:
    sampling = Sampling(max_new_tokens=6, num_samples=2)
    return generate_with(open_engine, folder, examples=prompts_of("llava"), sampling=sampling)
