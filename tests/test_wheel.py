"""The wheel in an environment of its own."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_wheel_lists_its_files_and_answers_mistakes_in_a_clean_environment_without_torch(
    tmp_path: Path,
) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True, capture_output=True
    )
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "packaging", "pydantic", "pyyaml"],
        check=True,
        capture_output=True,
    )
    command = [tmp_path / "venv" / "bin" / "vlm-distill", "ls"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    for name in ("easy_vqa", "easy_vqa_teacher", "easy_vqa_labelled"):
        assert name in listed
    wrong = [tmp_path / "venv" / "bin" / "vlm-distill", "check", "easy_vqa", "train.learning_rat=1"]
    refused = subprocess.run(wrong, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert refused.returncode == 2
    assert "unknown key; did you mean 'learning_rate'?" in refused.stderr
    found = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False)
    assert found.returncode != 0
    [teacher] = (tmp_path / "venv").rglob("assets/easy_vqa_teacher/model.safetensors")
    assert teacher.stat().st_size <= 20 * 2**20
