"""One optimiser step is the same for any split into micro-batches and processes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.torchrun import torchrun
from tests.distributed.training_jobs import CASES, Case, Found, step
from tests.whole_runs import once
from vlm_distill.files import read_json

JOBS = "tests.distributed.training_jobs"


def assert_equal(found: Found, expected: Found, case: Case) -> None:
    # A divergence is a difference of logarithms that nearly cancel.
    rounding = 1e-6 if case.dtype == torch.float64 else 1e-5
    assert found.loss == pytest.approx(expected.loss, rel=rounding), case
    assert found.gradients.keys() == expected.gradients.keys(), case
    names = sorted(expected.gradients)
    size = float(torch.cat([expected.gradients[name].flatten() for name in names]).norm())
    # Gradients are sums that partly cancel, and those of key biases are 0 but for rounding.
    relative, absolute = (1e-6, 1e-9) if case.dtype == torch.float64 else (0.0, 2e-6)
    for name in names:
        distance = float((found.gradients[name] - expected.gradients[name]).norm())
        allowed = relative * float(expected.gradients[name].norm()) + absolute * size
        assert distance <= allowed, (str(case), name, distance / size)


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the steps that two processes took."""

    def take(folder: Path) -> None:
        job = torchrun(JOBS, folder)
        assert job.returncode == 0, job.output

    return once(tmp_path_factory, "steps_of_two_processes", take)


@pytest.mark.parametrize("kind", CASES)
def test_two_processes_take_the_step_of_one(taken: Path, tmp_path: Path, kind: str) -> None:
    alone: dict[object, Found] = {}
    for case in CASES[kind]:
        found = Found(
            loss=read_json(taken / kind / f"{case}.json"),
            gradients=load_file(taken / kind / f"{case}.safetensors"),
        )
        kind_of_case = (case.model, case.objective, case.dtype, case.images, str(case.trainable))
        expected = alone.setdefault(kind_of_case, step(case, tmp_path / "alone"))
        assert_equal(found, expected, case)
