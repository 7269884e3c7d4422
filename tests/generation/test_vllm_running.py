"""vLLM itself, on a CPU too, against the engine that uses transformers. Skipped where it is not installed."""

import copy
import dataclasses
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engines import (
    IDENTITY,
    KINDS,
    QUESTIONS,
    VLLM_CONFIG,
    VLLM_INSTALLED,
    load_pictures,
    prompts_of,
    vllm_engine_of,
    with_many_stops,
)
from tests.tiny import example, tiny_llava, tiny_text_model
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.data.store import ResponseStore
from vlm_distill.errors import EngineError
from vlm_distill.files import hash_json
from vlm_distill.generation.engine import Completion, Engine, Sampling
from vlm_distill.generation.prompts import prompt_lengths
from vlm_distill.generation.transformers_engine import TransformersEngine
from vlm_distill.generation.vllm_engine import VllmEngine
from vlm_distill.generation.work import Job, generate_responses, read_counts
from vlm_distill.models.load import load_model
from vlm_distill.models.save import save_model
from vlm_distill.records import Example, Response

ROOT = Path(__file__).resolve().parents[2]
# What vLLM compiles on a CPU takes longer than everything else here.
CPU_SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not VLLM_INSTALLED, reason="vllm is not installed"),
    pytest.mark.filterwarnings("ignore"),  # its dependencies warn when they are imported
    pytest.mark.timeout(900),
]


def saved_model(kind: str, folder: Path) -> LoadedModel:
    """Save a model whose heads are wide enough for vLLM's kernels and whose weights spread its logits."""
    tiny = tiny_text_model(hidden_size=64) if kind == "text" else tiny_llava(hidden_size=64)
    model = copy.deepcopy(tiny.model)
    if kind == "llava":
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1 and "vision_tower" not in name:
                    parameter *= 10
    save_model(dataclasses.replace(tiny, model=model), folder)
    return with_many_stops(load_model(str(folder)))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, VllmEngine]]:
    """Engines of both kinds, which start when they are first asked."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CPU_SETTINGS.items():
            patch.setenv(name, value)
        engines = {
            kind: vllm_engine_of(saved_model(kind, tmp_path_factory.mktemp(kind) / "m")) for kind in KINDS
        }
        yield engines
        for engine in engines.values():
            engine.close()


def both(
    engine: VllmEngine, examples: Sequence[Example], sampling: Sampling
) -> tuple[list[Completion], list[Completion]]:
    reference = TransformersEngine(
        loaded=engine.loaded,
        load_images=engine.load_images,
        batch_size=64,
        suppressed_ids=engine.suppressed_ids,
    )
    return engine.generate(examples, sampling), reference.generate(examples, sampling)


def random_states() -> list[object]:
    numbers = [part.tolist() if hasattr(part, "tolist") else part for part in np.random.get_state()]
    return [numbers, torch.get_rng_state().tolist()]


def assert_equal(completions: Sequence[Completion], expected: Sequence[Completion]) -> None:
    for one, other in zip(completions, expected, strict=True):
        assert dataclasses.replace(one, token_log_probs=None) == dataclasses.replace(
            other, token_log_probs=None
        )
        assert one.token_log_probs == pytest.approx(other.token_log_probs, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_responses_and_log_probabilities_equal_those_of_transformers(
    kind: str, running: dict[str, VllmEngine]
) -> None:
    states = random_states()
    ours, theirs = both(running[kind], prompts_of(kind), Sampling(temperature=0, max_new_tokens=9))
    assert_equal(ours, theirs)
    assert {one.finish for one in ours} == {"stop", "length"}
    assert len({one.token_ids for one in ours}) > 1
    assert random_states() == states
    for one in prompts_of(kind):
        ids = running[kind].loaded.encode([one], [load_pictures(one)]).input_ids[0].tolist()
        assert hash_json(ids) in {answer.prompt_ids_hash for answer in ours if answer.example_id == one.id}


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_give_equal_rows_and_samples_differ(kind: str, running: dict[str, VllmEngine]) -> None:
    engine, examples = running[kind], prompts_of(kind)
    sampling = Sampling(temperature=0.8, top_p=0.95, max_new_tokens=6, num_samples=2, seed=3)
    first, again = engine.generate(examples, sampling), engine.generate(examples, sampling)
    assert [one.token_ids for one in first] == [one.token_ids for one in again]
    assert [(one.example_id, one.sample_index) for one in first] == [
        (e.id, i) for e in examples for i in range(2)
    ]
    differ = [a.token_ids != b.token_ids for a, b in zip(first[::2], first[1::2], strict=True)]
    assert sum(differ) > len(examples) // 2
    other = engine.generate(examples, sampling.model_copy(update={"seed": 4}))
    assert [one.token_ids for one in first] != [one.token_ids for one in other]
    # More samples leave the earlier ones as they are.
    one_each = engine.generate(examples, sampling.model_copy(update={"num_samples": 1}))
    assert [one.token_ids for one in one_each] == [one.token_ids for one in first[::2]]


def test_log_probabilities_of_samples_are_at_temperature_one_and_unrestricted(
    running: dict[str, VllmEngine],
) -> None:
    engine, examples = running["llava"], prompts_of("llava")
    sampling = Sampling(temperature=0.5, top_k=20, max_new_tokens=5)
    for one, prompt in zip(engine.generate(examples, sampling), examples, strict=True):
        encoded = engine.loaded.encode([prompt], [load_pictures(prompt)])
        ids = torch.cat([encoded.input_ids, torch.tensor([one.token_ids])], dim=1)
        with torch.no_grad():
            logits = engine.loaded.model(input_ids=ids, **encoded.extras).logits[0]
        start = encoded.input_ids.shape[1] - 1
        rows = logits[start:-1].log_softmax(dim=-1)
        expected = rows.gather(1, torch.tensor(one.token_ids)[:, None])[:, 0].tolist()
        assert one.token_log_probs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_forbidden_ids_are_never_generated(
    kind: str, running: dict[str, VllmEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, sampling = running[kind], Sampling(temperature=0, max_new_tokens=4)
    before = {t for one in engine.generate(prompts_of(kind), sampling) for t in one.token_ids}
    # An id behind the output layer is no id of this model: nothing to forbid.
    monkeypatch.setattr(engine, "suppressed_ids", (*sorted(before), 10**6))
    ours, theirs = both(engine, prompts_of(kind), sampling)
    assert_equal(ours, theirs)
    assert not before & {token_id for one in ours for token_id in one.token_ids}


def test_a_stop_string_ends_a_row_at_the_token_that_completes_it(running: dict[str, VllmEngine]) -> None:
    engine, examples = running["text"], prompts_of("text")
    free = engine.generate(examples, Sampling(temperature=0, max_new_tokens=9))
    text = max((one.text for one in free), key=len)
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    sampling = Sampling(temperature=0, max_new_tokens=9, stop=(stop, "never in there"))
    ours, theirs = both(engine, examples, sampling)
    assert_equal(ours, theirs)
    assert any(
        one.text == other.text.split(stop)[0] != other.text for one, other in zip(ours, free, strict=True)
    )


def test_a_prompt_that_vllm_reads_in_other_ids_is_an_error(
    running: dict[str, VllmEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = running["llava"]
    encode = engine.loaded.adapter.encode

    def with_one_more(processor: object, examples: object, images: object) -> object:
        prompts = encode(processor, examples, images)
        ids = torch.cat([prompts.input_ids, torch.full((len(prompts.input_ids), 1), 9)], dim=1)
        mask = torch.cat([prompts.attention_mask, torch.ones(len(ids), 1, dtype=torch.long)], dim=1)
        return dataclasses.replace(prompts, input_ids=ids, attention_mask=mask)

    adapter = dataclasses.replace(engine.loaded.adapter, encode=with_one_more)
    monkeypatch.setattr(engine, "loaded", dataclasses.replace(engine.loaded, adapter=adapter))
    with pytest.raises(EngineError, match=r"example 0: vllm reads its prompt as (\d+) tokens, training as"):
        engine.generate(prompts_of("llava")[:1], Sampling(max_new_tokens=1))


def test_more_prompt_tokens_than_vllm_reads_in_one_step_are_sampled_on_a_cpu_too(
    running: dict[str, VllmEngine],
) -> None:
    engine, sampling = running["text"], Sampling(temperature=0.8, max_new_tokens=3)
    many = [example(str(number), f"{number} {QUESTIONS[2] * 15}") for number in range(16)]
    assert sum(prompt_lengths(engine.loaded, load_pictures, many)) > 4096
    together, alone = engine.generate(many, sampling), engine.generate(many[-1:], sampling)
    assert together[-1].token_ids == alone[0].token_ids


def test_a_refused_option_is_one_line(running: dict[str, VllmEngine]) -> None:
    engine = dataclasses.replace(
        running["text"], config=VLLM_CONFIG.model_copy(update={"max_model_len": 10**6})
    )
    with pytest.raises(EngineError, match=r"vllm cannot start: .*max_model_len") as error:
        engine.generate(prompts_of("text"), Sampling(max_new_tokens=1))
    assert "\n" not in str(error.value)


def test_a_killed_stage_resumes_and_leaves_no_process_behind(
    running: dict[str, VllmEngine], tmp_path: Path
) -> None:
    folder = Path(running["llava"].loaded.path)
    command = [sys.executable, "-c", KILLED_JOB, str(folder), str(tmp_path / "killed")]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    processes = [int(one) for one in killed.stdout.split("children:")[1].split()]
    assert processes
    before = ResponseStore(tmp_path / "killed").read()
    assert {one.example_id for one in before} == {"0", "1"}
    assert wait_until_gone(processes, seconds=60) == []

    with Recorded(vllm_engine_of(with_many_stops(load_model(str(folder))))) as engine:
        resumed = stored_job(engine, tmp_path / "killed")
    assert engine.asked == ["2", "3", "4", "5"]
    assert engine.processes
    assert wait_until_gone(engine.processes, seconds=5) == []
    assert [one.id for one in resumed] == [one.id for one in stored_job(running["llava"], tmp_path / "whole")]
    stored = ResponseStore(tmp_path / "killed").read()
    assert stored[: len(before)] == before
    counts = read_counts(tmp_path / "killed")
    assert len(stored) == len({one.id for one in stored}) == counts.stop + counts.length
    assert counts.stop + counts.length + counts.empty == 12


class Recorded:
    """A vLLM engine that notes which examples it was asked for and which processes it started."""

    def __init__(self, inner: VllmEngine, *, kill_at: int = 0) -> None:
        self.inner, self.kill_at = inner, kill_at
        self.asked: list[str] = []
        self.before, self.processes = descendants(os.getpid()), list[int]()

    def __enter__(self) -> "Recorded":
        self.inner.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.inner.__exit__(*error)

    @property
    def settings(self) -> Mapping[str, str]:
        return self.inner.settings

    def plan(self, examples: Sequence[Example], sampling: Sampling) -> list[list[int]]:
        return self.inner.plan(examples, sampling)

    def generate(self, examples: Sequence[Example], sampling: Sampling) -> list[Completion]:
        completions = self.inner.generate(examples, sampling)
        self.asked += [one.id for one in examples]
        self.processes = sorted({*descendants(os.getpid())} - {*self.before})
        if len(self.asked) == self.kill_at:
            print("children:", *self.processes, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return completions


KILLED_JOB = """
import sys
from pathlib import Path
from tests import engines
from tests.generation import test_vllm_running as tests
from vlm_distill.generation import work

work.SHARD_SECONDS = 0.0
engine = engines.vllm_engine_of(engines.with_many_stops(tests.load_model(sys.argv[1])))
tests.stored_job(tests.Recorded(engine, kill_at=4), Path(sys.argv[2]))
"""


def stored_job(engine: Engine, folder: Path) -> list[Response]:
    sampling = Sampling(max_new_tokens=6, num_samples=2)
    job = Job(
        examples=prompts_of("llava"),
        sampling=sampling,
        identity=IDENTITY,
        author="student",
        round=1,
        label="student",
    )
    return generate_responses(job, lambda: nullcontext(engine), folder=folder, log=lambda _: None)


def descendants(process: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue  # it ended meanwhile
        # Python's tracker of shared memory stays as long as its process.
        if parent == process and b"resource_tracker" not in (path.parent / "cmdline").read_bytes():
            child = int(path.parent.name)
            found += [child, *descendants(child)]
    return found


def wait_until_gone(processes: Sequence[int], *, seconds: float) -> list[int]:
    """Return those of the processes that have not ended when the time is over."""
    deadline, left = time.monotonic() + seconds, []
    for process in processes:
        try:
            handle = os.pidfd_open(process)
        except ProcessLookupError:
            continue
        ended, _, _ = select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
        os.close(handle)
        left += [] if ended else [process]
    return left
