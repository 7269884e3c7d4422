"""Engines of a run: what is missing is said before anything is done, and only where something is missing."""

import shutil
from pathlib import Path

import pytest

from tests.commands import error_of
from tests.engines import VLLM_INSTALLED
from tests.tiny import tiny_llava, with_width
from tests.tiny_run import write_run
from tests.whole_runs import Copy, config_of
from vlm_distill.cli import main
from vlm_distill.models.save import save_model
from vlm_distill.runs.config import load_run
from vlm_distill.runs.engines import about_live

VLLM = ("generate.engine={kind: vllm}", "evaluate.engine={kind: vllm}")
pytestmark = pytest.mark.skipif(VLLM_INSTALLED, reason="vllm is installed")


@pytest.mark.parametrize("override", VLLM)
@pytest.mark.parametrize("verb", ["run", "check"])
def test_a_missing_engine_is_said_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, override: str
) -> None:
    line = error_of(capsys, main([verb, str(write_run(tmp_path)), override]))
    assert f"error: {override.partition('=')[0]}: vllm is not installed" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lost", "key"),
    [
        ("responses/student_round_2", "generate.engine"),
        ("held_out/teacher", "evaluate.engine"),
        ("eval/round_1/tiny.shuffled_images", "evaluate.engine"),
        ("eval/round_2/held_out", "evaluate.engine"),
    ],
)
def test_only_what_is_not_generated_yet_needs_its_engine(
    finished: Path, copy: Copy, capsys: pytest.CaptureFixture[str], lost: str, key: str
) -> None:
    folder = copy(finished)
    check = ["check", str(config_of(finished)), f"output={folder}", *VLLM]
    # What is computed of the answers alone needs no engine.
    for path in (*folder.glob("eval/*/agreement.json"), *folder.glob("eval/*/*/results.json")):
        path.unlink()
    assert main(check) == 0
    shutil.rmtree(folder / lost)
    assert f"error: {key}: vllm is not installed" in error_of(capsys, main(check))


def test_what_an_engine_cannot_sample_is_said_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tiny_llava(1), tmp_path / "teacher")
    save_model(with_width(tiny_llava(), 2000), tmp_path / "student")
    config = str(write_run(tmp_path, student={"model": str(tmp_path / "student")}))
    for key, override, message in (
        ("generate", "seed=1", "1,701 ids must not be generated, and vllm can forbid 1,024"),
        ("generate", "generate.sampling.temperature=3", "temperature: vllm samples between 0.01 and 2.0"),
        # All that is measured is greedy, and no other model reads it.
        ("evaluate", "generate.sampling.temperature=3", "vllm is not installed"),
    ):
        line = error_of(capsys, main(["check", config, f"{key}.engine={{kind: vllm}}", override]))
        assert f"error: {key}.engine: " in line
        assert message in line


def test_a_run_that_samples_during_training_says_in_which_engine() -> None:
    gkd = "objective={kind: gkd, beta: 0.5, on_policy: 0.5}"
    [line] = about_live(load_run("easy_vqa", [VLLM[0], gkd]))
    assert "sampled in this process" in line
    assert about_live(load_run("easy_vqa", [gkd])) == about_live(load_run("easy_vqa", [VLLM[0]])) == []
