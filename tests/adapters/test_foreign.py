import pytest
import torch

from vlm_distill.adapters.foreign import REMEDY, blaming
from vlm_distill.errors import AdapterError, DataError


@pytest.mark.parametrize(
    "error",
    [
        KeyError("a"),
        ZeroDivisionError("by zero"),
        RecursionError("deep"),
        AssertionError(),
        AttributeError("x"),
    ],
)
def test_whatever_is_raised_over_a_model_is_one_line_with_its_kind_and_what_to_do(error: Exception):
    with pytest.raises(AdapterError) as caught, blaming("owner/model: cannot be read"):
        raise error
    line = str(caught.value)
    assert line.startswith(f"owner/model: cannot be read: {type(error).__name__}: ")
    assert line.endswith(REMEDY)
    assert "\n" not in line
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        DataError("ours"),
        MemoryError(),
        torch.OutOfMemoryError("full"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        KeyboardInterrupt(),
    ],
)
def test_what_is_no_fault_of_the_model_passes(error: BaseException):
    with pytest.raises(type(error)) as caught, blaming("a model"):
        raise error
    assert caught.value is error
