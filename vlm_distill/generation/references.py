"""References as responses, so that training on labels (SFT) reads the records that generation writes."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from vlm_distill.errors import DataError
from vlm_distill.records import Example, Response, response_id


def encode_references(
    examples: Sequence[Example], tokenizer: Any, *, stop_id: int, fingerprint: str
) -> list[Response]:
    """Return one response by "reference" per example: its most frequent one, in a tie the first of these.

    Ten annotators' answers to one question are votes: the most frequent one is the label, the others are for
    scoring.
    `fingerprint` names what the ids belong to (the tokenizer's model). The ids end with `stop_id`.

    Raises:
        DataError: an example without references.
    """
    without = [example.id for example in examples if not example.references]
    if without:
        raise DataError(
            f"example {without[0]!r}: expected at least one reference to train on labels, got none "
            f"({len(without)} of {len(examples)} examples have none); add them or do not train on labels"
        )
    if not examples:
        return []
    texts = [Counter(example.references).most_common(1)[0][0] for example in examples]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [
        Response(
            id=response_id(example.id, "reference", round=0, sample_index=0),
            example_id=example.id,
            author="reference",
            round=0,
            sample_index=0,
            text=text,
            token_ids=(*token_ids, stop_id),
            finish="stop",
            model_fingerprint=fingerprint,
            reencoded=True,
        )
        for example, text, token_ids in zip(examples, texts, encoded, strict=True)
    ]
