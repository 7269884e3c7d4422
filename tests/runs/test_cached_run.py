"""`vlm-distill cache`, and `run` with a cache: the students of a live teacher without its body."""

import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import LlamaModel

from tests.commands import error_of, run
from tests.tiny import VOCAB_SIZE
from tests.tiny_run import write_run
from tests.whole_runs import Copy, config_of
from vlm_distill.cli import main
from vlm_distill.models.skeleton import load_skeleton
from vlm_distill.progress import silent
from vlm_distill.runs.config import ModelConfig
from vlm_distill.runs.proof import proven
from vlm_distill.runs.teacher import Teacher
from vlm_distill.teacher_cache.tiers import HIDDEN

STAGES = ("warmup", "round_1", "round_2", "seqkd")


def teacher_of(folder: Path, *, keeps_head_only: bool) -> Teacher:
    """Return the teacher of the config in a folder, proven."""
    config = ModelConfig(model=str(folder / "teacher"))
    verdict = proven(load_skeleton(config.model), ("answers",), role="teacher", log=silent)
    return Teacher(
        config, device="cpu", keeps_head_only=keeps_head_only, vision_cache=None, verdict=verdict, log=print
    )


@pytest.fixture
def pair(finished: Path, cached: Path) -> tuple[Path, Path]:
    """Return the folders of one run with a live teacher and one with a cache."""
    return finished, cached


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
    teacher = teacher_of(tmp_path, keeps_head_only=False)
    assert not any(parameter.requires_grad for parameter in teacher.loaded.model.parameters())


def test_a_run_goes_on_after_other_held_out_answers(finished: Path, cached: Path, copy: Copy) -> None:
    folder = copy(cached)
    leftover = folder / "cache" / "teacher" / "rank_0" / ".rows-00001.safetensors.1.tmp"
    leftover.write_text("of a killed process")
    other = ["cache.tier=hidden", "evaluate.agreement_tokens=4", f"output={folder}"]
    assert run(config_of(finished), *other) == 0
    assert not leftover.exists()


def test_a_teacher_without_its_body_has_the_weights_of_its_output_layer_alone(tmp_path: Path) -> None:
    write_run(tmp_path)
    teacher = teacher_of(tmp_path, keeps_head_only=True)
    assert sum(not parameter.is_meta for parameter in teacher.loaded.model.parameters()) == 1
    assert not any(parameter.is_meta for parameter in teacher.full().model.parameters())
    teacher.release()
    assert sum(not parameter.is_meta for parameter in teacher.loaded.model.parameters()) == 1


def test_no_student_trains_or_answers_with_the_body_of_the_teacher_in_memory(tmp_path: Path) -> None:
    bodies: list[weakref.ref[LlamaModel]] = []
    trains: list[bool] = []
    answers: list[bool] = []

    def watch(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, LlamaModel) and module.config.hidden_size == 32:
            bodies.append(weakref.ref(module))
        elif isinstance(module, nn.Embedding) and module.weight.shape == (VOCAB_SIZE, 16):
            # The student's words, in training or one at a time.
            is_held = any(body() is not None for body in bodies)
            if module.training:
                trains.append(is_held)
            elif inputs[0].shape[1] == 1:
                answers.append(is_held)

    config = write_run(tmp_path, rounds=1, evaluate={"agreement_tokens": 5})
    with register_module_forward_pre_hook(watch):
        assert run(config, "cache.tier=hidden", "train.evaluate_every=3") == 0
    assert bodies
    assert trains
    assert answers
    assert not any(trains + answers)


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
    finished: Path, tmp_path: Path, settings: str
) -> None:
    short = ["rounds=1", "controls=[]", "evaluate={agreement_tokens: 5}", f"output={tmp_path / 'run'}"]
    assert run(config_of(finished), f"cache={settings}", *short) == 0
    live = load_file(finished / "round_1" / "model" / "model.safetensors")
    found = load_file(tmp_path / "run" / "round_1" / "model" / "model.safetensors")
    start = load_file(finished / "warmup" / "model" / "model.safetensors")
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
