"""Response batches: the log-probabilities of a reference model travel with their responses."""

import pytest
import torch

from vlm_distill.batches import pad_responses
from vlm_distill.records import Author, Response


def response(name: str, author: Author, ids: tuple[int, ...]) -> Response:
    return Response(
        id=name,
        example_id="e",
        author=author,
        round=1,
        sample_index=0,
        text="",
        token_ids=ids,
        finish="stop",
        model_fingerprint="m",
    )


GROUPS = [
    [response("a", "teacher", (5, 6, 7)), response("b", "student", (8,))],
    [response("c", "teacher", ())],
]


def test_reference_log_probs_are_joined_by_response_id() -> None:
    batch = pad_responses(GROUPS, reference_log_probs={"c": -3.0, "a": -1.0, "b": -2.0, "unused": 0.0})
    assert batch.reference_log_probs.tolist() == [-1.0, -2.0, -3.0]
    assert batch.reference_log_probs.dtype == torch.float32


@pytest.mark.parametrize("missing", [None, {}])
def test_without_a_reference_a_batch_has_none(missing) -> None:
    assert pad_responses(GROUPS, reference_log_probs=missing).reference_log_probs is None


def test_a_response_without_its_reference_is_an_error() -> None:
    with pytest.raises(KeyError, match="c"):
        pad_responses(GROUPS, reference_log_probs={"a": -1.0, "b": -2.0})


@pytest.mark.parametrize("reference", [None, {"a": -1.0, "b": -2.0, "c": -3.0}])
def test_every_tensor_moves_to_the_device(reference) -> None:
    moved = pad_responses(GROUPS, reference_log_probs=reference).to("meta")
    for name in ("prompt_index", "input_ids", "mask", "author"):
        assert getattr(moved, name).device.type == "meta"
    assert (moved.reference_log_probs is None) == (reference is None)
    assert reference is None or moved.reference_log_probs.device.type == "meta"
