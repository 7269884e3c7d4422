"""What `python -m tests.distributed.families` compares for every family, for some."""

from pathlib import Path

import pytest
import torch

from tests.distributed.families import compared, difference

# Pictures are read before the language model, in layers of their own inside it, and beside experts; the last
# has weights that no loss reaches.
NAMES = ["idefics3", "mllama", "qwen3_vl_moe", "deepseek_v32"]


@pytest.mark.slow
def test_families_train_alike_in_two_processes_of_which_one_has_pictures(tmp_path: Path) -> None:
    assert dict(compared(NAMES, tmp_path)) == dict.fromkeys(NAMES, "")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"all 0 weight": torch.tensor([3.0, 4.00002])}, "all 0 weight: "),
        ({"all 0 weight": torch.tensor([3.0, torch.nan])}, "all 0 weight: nan apart"),
        ({"all 1 loss": torch.tensor(2.0001)}, "all 1 loss: "),
        ({"all 1 bias": torch.tensor([0.0])}, "1 gradients only in two processes: all 1 bias"),
    ],
)
def test_a_difference_is_named(changed: dict[str, torch.Tensor], said: str) -> None:
    weight, loss = torch.tensor([3.0, 4.0]), torch.tensor(2.0)
    # The gradients of another step are larger by far.
    expected = {"all 0 weight": weight, "all 0 loss": loss, "all 1 weight": 1e6 * weight, "all 1 loss": loss}
    assert difference(expected | changed, expected).startswith(said)
    assert bool(difference(expected | changed, expected)) == bool(changed)
