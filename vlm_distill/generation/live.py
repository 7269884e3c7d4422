"""Responses of a student in the middle of its training: drawn, trained on and not stored."""

from collections.abc import Sequence

from vlm_distill.generation.engine import Engine, Sampling
from vlm_distill.records import Example, Response, response_id


def sample_responses(
    engine: Engine, examples: Sequence[Example], sampling: Sampling, *, batch_size: int
) -> list[Response]:
    """Return one response per example, in their order; a response with non-finite logits is missing.

    A response that consists of the stop token alone is one that the student would give, so it is kept.
    Prompts that do not fit the context are the caller's to leave out (`Engine.plan`).
    """
    batches = [examples[start : start + batch_size] for start in range(0, len(examples), batch_size)]
    completions = {one.example_id: one for batch in batches for one in engine.generate(batch, sampling)}
    return [
        Response(
            id=response_id(example.id, "student", round=0, sample_index=0),
            example_id=example.id,
            author="student",
            round=0,
            sample_index=0,
            text=one.text,
            token_ids=one.token_ids,
            finish=one.finish,
            model_fingerprint="live",
        )
        for example in examples
        if (one := completions[example.id]).finish != "aborted"
    ]
