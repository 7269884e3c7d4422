import dataclasses
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.engines import (
    EXAMPLES,
    IDENTITY,
    SAMPLING,
    SCRIPT,
    Recorded,
    generate,
    generate_with,
    llava_engine,
    llava_job,
    no_engine,
    scripted,
)
from tests.tiny import example, tiny_text_model
from vlm_distill.data.store import ResponseStore
from vlm_distill.errors import DataError, EngineError
from vlm_distill.generation import work
from vlm_distill.generation.engine import Completion, Sampling
from vlm_distill.generation.work import Counts, read_counts
from vlm_distill.records import Example, response_id
from vlm_distill.stopping import Interrupted, handled

ROOT = Path(__file__).resolve().parents[2]


def test_responses_come_in_example_order_with_their_provenance(tmp_path: Path) -> None:
    responses = generate(scripted(), tmp_path, examples=EXAMPLES[::-1])
    assert [one.example_id for one in responses] == [one.id for one in EXAMPLES[::-1] for _ in range(2)]
    first = responses[0]
    assert first.id == response_id("e6", "teacher", round=1, sample_index=0)
    assert (first.text, first.author, first.round, first.finish) == ("answer e6", "teacher", 1, "stop")
    assert (first.model_fingerprint, first.sampling) == ("a model", SAMPLING.hash())
    assert first.token_ids[-1] == tiny_text_model().tokenizer.eos_token_id
    assert read_counts(tmp_path) == Counts(prompts=7, overlong=0, stop=14, length=0, empty=0, aborted=0)


def test_an_unchanged_stage_is_not_generated_again(tmp_path: Path) -> None:
    first = generate(scripted(), tmp_path)
    engine, lines = scripted(), []
    assert generate(engine, tmp_path, lines=lines) == first
    assert engine.asked == []
    assert lines == ["teacher: unchanged, 14 stored responses are used, written by scripted 1"]


@pytest.mark.parametrize(
    "change",
    [
        {"sampling": SAMPLING.model_copy(update={"seed": 1})},
        {"identity": dataclasses.replace(IDENTITY, fingerprint="another model")},
        {"identity": dataclasses.replace(IDENTITY, suppressed_ids=(7,))},
        {"identity": dataclasses.replace(IDENTITY, stop_ids=(1, 7))},
        {"round": 2},
        {"author": "student"},
        {"examples": EXAMPLES[:-1]},
        {"examples": [*EXAMPLES[:-1], example("e6", "another question")]},
    ],
    ids=str,
)
def test_any_changed_input_generates_again_and_says_so(tmp_path: Path, change: dict[str, object]) -> None:
    generate(scripted(), tmp_path)
    engine, lines = scripted(), []
    responses = generate(engine, tmp_path, lines=lines, **change)
    examples = change.get("examples", EXAMPLES)
    assert engine.asked == [one.id for one in examples]
    assert len(responses) == 2 * len(examples)
    assert "changed since 14 responses were stored" in lines[0]
    assert {one.model_fingerprint for one in responses} == {change.get("identity", IDENTITY).fingerprint}


def test_complete_responses_are_used_whatever_engine_is_there_now(tmp_path: Path) -> None:
    first = generate(scripted(), tmp_path)
    lines: list[str] = []
    assert generate(scripted(version="2"), tmp_path, lines=lines) == first
    assert generate_with(no_engine, tmp_path, lines=lines) == first
    assert lines == ["teacher: unchanged, 14 stored responses are used, written by scripted 1"] * 2
    assert ResponseStore(tmp_path).engines == [{"kind": "scripted", "version": "1"}]


def test_responses_to_another_question_are_not_deleted_before_the_engine_is_there(tmp_path: Path) -> None:
    first = generate(scripted(), tmp_path)
    with pytest.raises(EngineError, match="not installed"):
        generate_with(no_engine, tmp_path, round=2)
    assert generate_with(no_engine, tmp_path) == first


def test_an_interrupted_stage_is_continued_by_another_engine_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "SHARD_SECONDS", 0.0)
    with pytest.raises(EngineError, match="'e4'"):
        generate(scripted({name: texts for name, texts in SCRIPT.items() if name < "e4"}), tmp_path)
    before = ResponseStore(tmp_path).read()
    # It has less room: e0, which is answered, would not fit, nor would e6.
    newer, lines = scripted(version="2"), list[str]()
    newer.too_long = ("e0", "e6")
    found = generate(newer, tmp_path, lines=lines)
    assert newer.asked == ["e3", "e4", "e5"]
    assert "8 responses stay as they are, stored by scripted 1; scripted 2 continues" in lines[0]
    assert ResponseStore(tmp_path).read()[: len(before)] == before
    assert [one.example_id for one in found] == [f"e{number}" for number in range(6) for _ in range(2)]
    assert read_counts(tmp_path) == Counts(prompts=7, overlong=1, stop=12, length=0, empty=0, aborted=0)
    assert [engine["version"] for engine in ResponseStore(tmp_path).engines] == ["1", "2"]


def test_what_is_planned_and_dropped_is_logged_and_counted(tmp_path: Path) -> None:
    script = {**SCRIPT, "e3": ("", "long " * 40)}
    lines: list[str] = []
    engine = scripted(script)
    responses = generate(engine, tmp_path, lines=lines)
    assert [one.finish for one in responses if one.example_id == "e3"] == ["length"]
    assert read_counts(tmp_path) == Counts(prompts=7, overlong=0, stop=12, length=1, empty=1, aborted=0)
    assert "7 prompts, 2 responses each, in 4 batches, 0 of them done" in lines[0]
    assert "too long" not in lines[0]
    assert "13 responses stored, 1 of them cut at max_new_tokens; dropped 1 empty and 0 aborted" in lines[1]


@dataclasses.dataclass
class OneToken(Recorded):
    """An engine whose answers are one token that holds a stop string, with `text` before it."""

    text: str = ""

    def generate(self, examples: Sequence[Example], sampling: Sampling) -> list[Completion]:
        completions = super().generate(examples, sampling)
        return [
            dataclasses.replace(one, token_ids=(9,), text=self.text, finish="stop") for one in completions
        ]


def test_one_token_with_text_before_a_stop_string_is_a_response_and_without_it_is_empty(
    tmp_path: Path,
) -> None:
    inner = scripted().inner
    assert {one.text for one in generate(OneToken(inner, text="yes"), tmp_path / "text")} == {"yes"}
    assert generate(OneToken(inner), tmp_path / "empty") == []
    assert read_counts(tmp_path / "empty").empty == 14


def test_a_batch_of_dropped_responses_is_not_generated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = {**SCRIPT, "e0": ("",), "e1": ("",)}
    whole = generate(scripted(script), tmp_path / "whole")
    monkeypatch.setattr(work, "SHARD_SECONDS", 0.0)
    # The script breaks off at e4: batches of two, so the first two batches are stored.
    broken = scripted({name: texts for name, texts in script.items() if name < "e4"})
    with pytest.raises(EngineError, match="'e4'"):
        generate(broken, tmp_path / "resumed")
    engine = scripted(script)
    assert generate(engine, tmp_path / "resumed") == whole
    assert engine.asked == ["e4", "e5", "e6"]
    assert read_counts(tmp_path / "resumed") == read_counts(tmp_path / "whole")
    assert read_counts(tmp_path / "whole").empty == 4


def test_user_errors_name_the_cause(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'e0' stands twice"):
        generate(scripted(), tmp_path, examples=[*EXAMPLES, EXAMPLES[0]])
    engine = scripted()
    engine.too_long = tuple(one.id for one in EXAMPLES)
    with pytest.raises(EngineError, match=r"none of the 7 prompts fits.*lower generate\.sampling\.max_new_"):
        generate(engine, tmp_path)
    assert not list(tmp_path.iterdir())  # a store would bind the folder to this question


def test_what_an_engine_aborted_is_answered_by_the_next_one(tmp_path: Path) -> None:
    engine = scripted()
    engine.abort = True
    for _ in range(2):
        with pytest.raises(EngineError, match="all 14 responses were aborted"):
            generate(engine, tmp_path)
    responses = generate(scripted(), tmp_path)
    assert [one.finish for one in responses] == ["stop"] * 14
    assert read_counts(tmp_path).aborted == 0


def test_stored_responses_stay_where_no_prompt_fits_the_changed_question(tmp_path: Path) -> None:
    stored = generate(scripted(), tmp_path)
    engine = scripted()
    engine.too_long = tuple(one.id for one in EXAMPLES)
    changed = SAMPLING.model_copy(update={"max_new_tokens": 2000})
    with pytest.raises(EngineError, match="none of the 7 prompts fits"):
        generate(engine, tmp_path, sampling=changed)
    unused = scripted({})
    assert generate(unused, tmp_path) == stored
    assert unused.asked == []


def test_complete_responses_name_their_engine_and_what_is_missing(tmp_path: Path) -> None:
    engine = scripted()
    engine.too_long = ("e1",)
    generate(engine, tmp_path)
    lines: list[str] = []
    generate(scripted(), tmp_path, lines=lines)
    expected = r"12 stored responses are used, written by scripted 1; 1 prompts were too long: delete .* to"
    assert re.search(expected, lines[-1])


@pytest.mark.parametrize("content", ["{", "[]", '{"prompts": 7}', None])
def test_damaged_counts_of_complete_responses_are_one_line(tmp_path: Path, content: str | None) -> None:
    generate(scripted(), tmp_path)
    (tmp_path / work.COUNTS).unlink()
    if content is not None:
        (tmp_path / work.COUNTS).write_text(content)
    with pytest.raises(DataError, match=r"counts\.json: (missing|damaged).*; delete .* and generate again"):
        generate(scripted(), tmp_path)


def test_a_complete_store_without_one_of_its_parts_is_refused(tmp_path: Path) -> None:
    stored = generate(scripted(), tmp_path)
    part = ResponseStore.create_or_resume(tmp_path / "rank_1", ResponseStore(tmp_path).key)
    part.append([dataclasses.replace(stored[0], id="more")], {"kind": "scripted"})
    with pytest.raises(DataError, match=r"expected 14 responses, found 15: the part of a process \(rank_"):
        generate(scripted(), tmp_path)


class Signalled(Recorded):
    """An engine whose process is asked to end by a batch, which it may die of."""

    dies = False

    def generate(self, examples: Sequence[Example], sampling: Sampling) -> list[Completion]:
        completions = super().generate(examples, sampling)
        if len(self.asked) == 4:
            os.kill(os.getpid(), signal.SIGINT)
            if self.dies:
                raise EngineError("the workers are gone")
        return completions


@pytest.mark.parametrize(("dies", "num_prompts"), [(False, 4), (True, 3)])
def test_a_signal_ends_a_stage_after_its_batch_and_what_was_answered_is_kept(
    tmp_path: Path, dies: bool, num_prompts: int
) -> None:
    engine = Signalled(llava_engine())
    engine.dies = dies
    with (
        handled(),
        pytest.raises(Interrupted, match=f"stopped after {2 * num_prompts} more responses, which"),
    ):
        llava_job(engine, tmp_path / "ended")
    before = ResponseStore(tmp_path / "ended").read()
    assert len({one.example_id for one in before}) == num_prompts

    rest = Recorded(llava_engine())
    resumed = llava_job(rest, tmp_path / "ended")
    assert len(rest.asked) == 6 - num_prompts
    assert resumed == llava_job(llava_engine(), tmp_path / "whole")


def test_what_was_answered_is_kept_when_the_engine_fails(tmp_path: Path) -> None:
    engine = scripted()
    real, calls = engine.inner.generate, []

    def generate_once(examples: Sequence[Example], sampling: Sampling) -> list[Completion]:
        calls.append(1)
        if len(calls) == 2:
            raise EngineError("out of luck")
        return real(examples, sampling)

    engine.inner = dataclasses.replace(engine.inner)
    engine.generate = generate_once
    with pytest.raises(EngineError, match="out of luck"):
        generate(engine, tmp_path)
    assert len(ResponseStore(tmp_path)) > 0


KILLED_JOB = """
import os, signal, sys
from pathlib import Path
from tests import engines
from vlm_distill.generation import work

class Killed(engines.Recorded):
    def generate(self, examples, sampling):
        completions = super().generate(examples, sampling)
        if len(self.asked) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return completions

work.SHARD_SECONDS = 0.0
engines.llava_job(Killed(engines.llava_engine()), Path(sys.argv[1]))
"""


def test_a_killed_stage_resumes_to_the_same_rows(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_JOB, str(tmp_path / "killed")]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = ResponseStore(tmp_path / "killed").read()
    assert len({one.example_id for one in before}) == 2

    engine = Recorded(llava_engine())
    resumed = llava_job(engine, tmp_path / "killed")
    assert len(engine.asked) == 4
    assert resumed == llava_job(llava_engine(), tmp_path / "whole")
    stored = ResponseStore(tmp_path / "killed").read()
    assert stored[: len(before)] == before
    assert stored == ResponseStore(tmp_path / "whole").read()


def test_responses_to_another_question_go_when_the_first_to_this_one_are_there(tmp_path: Path) -> None:
    first = generate(scripted(), tmp_path)
    with pytest.raises(EngineError, match="'e0'"):
        generate(scripted({}), tmp_path, round=2)
    assert generate_with(no_engine, tmp_path) == first
    assert {one.round for one in generate(scripted(), tmp_path, round=2)} == {2}
