"""A stage leaves the same student on disk, by one process or two, with whole or sharded weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.stage_jobs import settings_of, stage_of
from tests.distributed.torchrun import torchrun
from tests.distributed.training_jobs import MODELS
from vlm_distill.models.save import save_model
from vlm_distill.training.train import train

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("model", "treatment"), [("text_untied", "full"), ("llava_tied", "full"), ("llava_tied", "lora")]
)
def test_two_processes_leave_the_student_of_one_also_after_an_interruption(
    tmp_path: Path, model: str, treatment: str
) -> None:
    save_model(MODELS[model](0, 16), tmp_path / "start")
    train(settings_of(treatment), stage_of(model, tmp_path / "start", tmp_path / "alone"), log=lambda _: None)
    before, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("start", "alone/model"))
    moved = max(float((expected[name] - before[name]).abs().max()) for name in expected)
    for kind in ("ddp", "fsdp"):
        job = torchrun("tests.distributed.stage_jobs", kind, model, treatment, tmp_path)
        assert job.returncode == 0, job.output
        assert "continuing after step 2" in job.output
        found = load_file(tmp_path / kind / "model" / "model.safetensors")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            # Adam divides by the size of a gradient, also of one that is all rounding.
            torch.testing.assert_close(found[name], value, rtol=0, atol=0.01 * moved, msg=f"{kind}: {name}")
    assert "refused: train.batch_size: expected a multiple of the 2 processes, got 5" in job.output
    assert "refused: train.evaluate_every: the live student is needed whole" in job.output
