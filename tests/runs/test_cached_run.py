"""`vlm-distill cache`, and `run` with a cache: the students of a live teacher without its body."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.commands import error_of
from tests.tiny_run import write_run
from vlm_distill.cli import main
from vlm_distill.generation.engine import Engine
from vlm_distill.generation.work import Job
from vlm_distill.runs import stages
from vlm_distill.runs.config import ModelConfig
from vlm_distill.runs.teacher import Teacher
from vlm_distill.teacher_cache.store import HIDDEN
from vlm_distill.training.trainer import Trainer

STAGES = ("warmup", "round_1", "round_2", "seqkd")
EVERY = "train.evaluate_every=3"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folders of one run with a live teacher and one with a cache."""
    folder = tmp_path_factory.mktemp("cached")
    config = str(write_run(folder))
    assert main(["run", config, f"output={folder / 'live'}", EVERY]) == 0
    assert main(["run", config, f"output={folder / 'cached'}", "cache.tier=hidden", EVERY]) == 0
    return folder / "live", folder / "cached"


def test_a_run_from_the_cache_trains_the_students_of_a_live_teacher(pair: tuple[Path, Path]) -> None:
    for stage in STAGES:
        live, cached = (load_file(folder / stage / "model" / "model.safetensors") for folder in pair)
        for name, value in live.items():
            torch.testing.assert_close(cached[name], value, rtol=0, atol=5e-6, msg=f"{stage} {name}")


def test_a_run_from_the_cache_measures_what_one_with_a_live_teacher_does(pair: tuple[Path, Path]) -> None:
    live, cached = (json.loads((folder / "summary.json").read_text())["rows"] for folder in pair)
    assert [row["model"] for row in live] == [row["model"] for row in cached]
    for ours, theirs in zip(cached, live, strict=True):
        assert ours["scores"] == theirs["scores"]
        for name in ("token_kl", "own_kl"):
            assert (ours[name] is None) == (theirs[name] is None)
            if theirs[name] is not None:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5)


def test_the_student_in_training_is_compared_with_the_cached_teacher(pair: tuple[Path, Path]) -> None:
    found = []
    for folder in pair:
        lines = (folder / "round_1" / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        found.append({row["step"]: row["held_out_kl"] for row in rows if "held_out_kl" in row})
    assert list(found[0]) == [3, 6]
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-5)


def test_a_live_teacher_is_frozen(tmp_path: Path) -> None:
    write_run(tmp_path)
    config = ModelConfig(model=str(tmp_path / "teacher"))
    teacher = Teacher(config, device="cpu", keeps_head_only=False, vision_cache=None, log=print)
    assert not any(parameter.requires_grad for parameter in teacher.loaded.model.parameters())


def test_a_run_goes_on_after_other_held_out_answers(pair: tuple[Path, Path], tmp_path: Path) -> None:
    config = str(write_run(tmp_path, rounds=1, controls=[], cache={"tier": "hidden"}))
    assert main(["run", config]) == 0
    leftover = tmp_path / "run" / "cache" / "teacher" / "rank_0" / ".rows-00001.safetensors.1.tmp"
    leftover.write_text("of a killed process")
    assert main(["run", config, "evaluate.agreement_tokens=4"]) == 0
    assert not leftover.exists()


def test_no_student_trains_or_answers_with_the_body_of_the_teacher_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers: list[Teacher] = []
    held: list[bool] = []
    plain_init, plain_run, plain_generate = (
        Teacher.__init__,
        Trainer.run,
        stages.generate_responses,
    )

    def watched_generate(engine: Engine, job: Job, **settings: Any) -> Any:
        if job.author == "student":
            held.append(teachers[0]._full is not None)
        return plain_generate(engine, job, **settings)

    def watched_init(self: Teacher, *arguments: object, **settings: object) -> None:
        teachers.append(self)
        plain_init(self, *arguments, **settings)

    def watched_run(self: Trainer) -> None:
        held.append(teachers[0]._full is not None)
        weights = teachers[0].loaded.model.parameters()
        assert sum(not parameter.is_meta for parameter in weights) == 1
        plain_run(self)

    monkeypatch.setattr(Teacher, "__init__", watched_init)
    monkeypatch.setattr(Trainer, "run", watched_run)
    monkeypatch.setattr(stages, "generate_responses", watched_generate)
    short = write_run(tmp_path, rounds=1, evaluate={"agreement_tokens": 5})
    assert main(["run", str(short), "cache.tier=hidden", EVERY]) == 0
    # The warm-up, the student's responses (sampled, then read to be cached and trained on), round, control.
    assert held == [False] * 6


def test_the_verb_fills_the_cache_and_the_run_uses_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_run(tmp_path, rounds=1, controls=[], evaluate={"agreement_tokens": 5}))
    assert main(["cache", config, "cache.tier=hidden"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("teacher: 18 responses, ")
    assert "teacher cache: the teacher is loaded for 18 responses" in printed.err
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "cache").rglob("*.safetensors")}
    assert main(["cache", config, "cache.tier=hidden"]) == 0
    assert "loaded" not in capsys.readouterr().err
    assert main(["run", config, "cache.tier=hidden"]) == 0
    printed = capsys.readouterr()
    assert "student round 1 cache: the teacher is loaded for 18 responses" in printed.err
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    # Now the student's responses exist as well.
    assert main(["cache", config, "cache.tier=hidden"]) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "teacher",
        "student_round_1",
    ]


@pytest.mark.parametrize("settings", ["{tier: top_k, k: 290}", "{tier: hidden, dtype: bfloat16}"])
def test_smaller_tiers_end_near_the_student_of_a_live_teacher(
    pair: tuple[Path, Path], tmp_path: Path, settings: str
) -> None:
    short = write_run(tmp_path, rounds=1, controls=[], evaluate={"agreement_tokens": 5})
    assert main(["run", str(short), f"cache={settings}"]) == 0
    live = load_file(pair[0] / "round_1" / "model" / "model.safetensors")
    found = load_file(tmp_path / "run" / "round_1" / "model" / "model.safetensors")
    start = load_file(pair[0] / "warmup" / "model" / "model.safetensors")
    moved = sum((live[name] - start[name]).square().sum() for name in live)
    off = sum((live[name] - found[name]).square().sum() for name in live)
    assert 0 < off < 0.05 * moved
    held_out = next((tmp_path / "run" / "cache" / "held_out").rglob("*.safetensors"))
    assert load_file(held_out)[HIDDEN].dtype == torch.float32


MISTAKES = {
    "no cache": ("cache", [], "cache: not set; add `cache: {tier: hidden}` to the config"),
    "a tier without distributions": ("run", ["cache.tier=sampled"], "compares distributions"),
    "responses of the live student": (
        "run",
        ["cache={}", "objective={kind: gkd}", "controls=[]"],
        "draws responses during training",
    ),
    "pictures that change": (
        "run",
        ["cache={}", "warmup.objective={kind: kd}", "warmup.augment.flip=true"],
        "leave one of `cache` and `augment` out",
    ),
    "nothing reads the teacher": ("cache", ["cache={}", "objective={kind: seqkd}"], "nothing to cache"),
    "a control that does not fit": (
        "run",
        ["cache={}", "controls=[{name: x, objective: {kind: imitkd}}]"],
        "objective imitkd draws responses",
    ),
}


@pytest.mark.parametrize(("verb", "overrides", "message"), MISTAKES.values(), ids=MISTAKES)
def test_what_a_cache_cannot_do_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, overrides: list[str], message: str
) -> None:
    config = str(write_run(tmp_path))
    assert message in error_of(capsys, main([verb, config, *overrides]))
    assert not (tmp_path / "run").exists()


def test_check_says_what_the_cache_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(write_run(tmp_path)), "cache.dtype=bfloat16"]) == 0
    # 32 numbers of 2 bytes.
    assert "cache: tier hidden, 64 bytes per response token" in capsys.readouterr().out
