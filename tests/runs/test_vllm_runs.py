"""Runs and evaluations answered by vLLM itself, on a CPU too. Skipped where it is not installed."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.commands import error_of, run
from tests.engines import VLLM_INSTALLED
from tests.tiny import LANGUAGE, tiny_llava
from tests.tiny_run import write_run
from vlm_distill.cli import main
from vlm_distill.data.store import ResponseStore
from vlm_distill.models.save import save_model

SETTINGS = {"dtype": "float32", "max_model_len": "256", "enforce_eager": "true"}
VLLM = f"generate.engine={{kind: vllm, {', '.join(f'{key}: {value}' for key, value in SETTINGS.items())}}}"
# What vLLM compiles on a CPU takes longer than everything else here.
CPU_SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not VLLM_INSTALLED, reason="vllm is not installed"),
    pytest.mark.filterwarnings("ignore"),  # its dependencies warn when they are imported
    pytest.mark.timeout(900),
]


@pytest.fixture(autouse=True)
def _cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CPU_SETTINGS.items():
        monkeypatch.setenv(name, value)


def write_wide_run(folder: Path, **changes: Any) -> Path:
    """Write a run of one round whose models have attention heads of 32 dimensions and answer greedily."""
    folder.mkdir(exist_ok=True)
    save_model(tiny_llava(1, hidden_size=64), folder / "teacher")
    built = {"vision": {"from": "teacher"}, "language": {**LANGUAGE, "hidden_size": 64}}
    student = {"build": {**built, "vision_feature_layer": -1}}
    generate = {"sampling": {"temperature": 0.0, "max_new_tokens": 5}}
    return write_run(
        folder, rounds=1, controls=[], student=student, generate=generate, **{"evaluate": None, **changes}
    )


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_with_vllm_is_that_with_transformers_and_is_finished_for_it_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_wide_run(tmp_path)
    ours, theirs = tmp_path / "run", tmp_path / "transformers"
    assert run(config, VLLM) == 0
    assert run(config, f"output={theirs}") == 0
    for name in ("teacher", "student_round_1"):
        stores = [ResponseStore(folder / "responses" / name) for folder in (ours, theirs)]
        answers = [[(one.id, one.token_ids, one.finish) for one in store.read()] for store in stores]
        assert sorted(answers[0]) == sorted(answers[1])
        assert [[engine["kind"] for engine in store.engines] for store in stores] == [
            ["vllm"],
            ["transformers"],
        ]
    weights = [load_file(folder / "round_1" / "model" / "model.safetensors") for folder in (ours, theirs)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    before = files(ours / "responses") | files(ours / "round_1")
    capsys.readouterr()
    assert run(config) == 0
    assert files(ours / "responses") | files(ours / "round_1") == before
    assert capsys.readouterr().err.count("stored responses are used") == 2


def test_an_evaluation_with_vllm_answers_as_with_transformers(tmp_path: Path) -> None:
    write_wide_run(tmp_path)
    evaluate = [
        "eval",
        str(tmp_path / "teacher"),
        "--suite",
        str(tmp_path / "suite.yaml"),
        "--shuffle-images",
    ]
    engine = ["--engine", "vllm", *(f"{key}={value}" for key, value in SETTINGS.items())]
    assert main([*evaluate, "--output", str(tmp_path / "vllm"), *engine]) == 0
    assert main([*evaluate, "--output", str(tmp_path / "transformers")]) == 0
    for task in ("tiny", "tiny.shuffled_images"):
        found = [tmp_path / name / task for name in ("vllm", "transformers")]
        samples = [(folder / "samples.jsonl").read_text() for folder in found]
        assert samples[0] == samples[1]
        kinds = [json.loads((folder / "results.json").read_text()) for folder in found]
        assert [one["provenance"]["engines"][0]["kind"] for one in kinds] == ["vllm", "transformers"]


@pytest.mark.parametrize("key", ["generate.engine", "evaluate.engine"])
def test_heads_that_vllm_lacks_on_a_cpu_are_said_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    line = error_of(capsys, run(write_run(tmp_path), f"{key}={{kind: vllm}}"))
    assert f"error: {key}: " in line
    assert "its attention heads have 8 dimensions, and vllm on a CPU knows 32, 64, " in line
    assert not (tmp_path / "run").exists()
