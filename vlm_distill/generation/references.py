"""References as responses, so that training on labels (SFT) reads the records that generation writes."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from vlm_distill.adapters.plain_text import encode_texts
from vlm_distill.errors import DataError, shown
from vlm_distill.records import Example, Response, response_id


def encode_references(
    examples: Sequence[Example],
    processor: Any,
    *,
    stop_ids: Sequence[int],
    fingerprint: str,
    image_token_ids: Sequence[int] = (),
    skips_bad: bool = False,
) -> list[Response]:
    """Return one response by "reference" per example: its most frequent one, in a tie the first of these.

    Ten annotators' answers to one question are votes: the most frequent one is the label, the others are for
    scoring. `processor` is a tokenizer for text models; `fingerprint` names the model that they are of. The
    ids end with the first of `stop_ids`, once: what a label has of them at its end is taken off.
    `image_token_ids` stand for image features, so a response that holds one cannot be forwarded. Examples
    without a label, or with one that is nothing but an end, are missing from the result with `skips_bad`.

    Raises:
        DataError: an example without references, with one that is nothing but an end, or that encodes to a
            placeholder.
    """
    ends = [processor.decode([stop_id]) for stop_id in stop_ids]
    if skips_bad:
        examples = [one for one in examples if one.references and _without_end(_label(one), ends)]
    if not examples:
        return []
    texts = _without_ends(examples, ends)
    encoded = encode_texts(processor, texts)
    _refuse_placeholders(examples, texts, encoded, image_token_ids=image_token_ids)
    return [
        Response(
            id=response_id(example.id, "reference", round=0, sample_index=0),
            example_id=example.id,
            author="reference",
            round=0,
            sample_index=0,
            text=text,
            token_ids=(*token_ids, stop_ids[0]),
            finish="stop",
            model_fingerprint=fingerprint,
            reencoded=True,
        )
        for example, text, token_ids in zip(examples, texts, encoded, strict=True)
    ]


def _labels(examples: Sequence[Example]) -> list[str]:
    without = [example.id for example in examples if not example.references]
    if without:
        raise DataError(
            f"example {without[0]!r}: expected at least one reference to train on labels, got none "
            f"({len(without)} of {len(examples)} examples have none); add them, leave these out with "
            "data.overrides=[on_bad_row=skip], or do not train on labels"
        )
    return [_label(example) for example in examples]


def _label(example: Example) -> str:
    return Counter(example.references).most_common(1)[0][0]


def _without_ends(examples: Sequence[Example], ends: Sequence[str]) -> list[str]:
    """Return the labels without the stop tokens that they end with, and without whitespace behind these."""
    texts = _labels(examples)
    kept = [_without_end(text, ends) for text in texts]
    emptied = [
        example.id for example, text, left in zip(examples, texts, kept, strict=True) if text and not left
    ]
    if emptied:
        raise DataError(
            f"example {emptied[0]!r}: expected a reference to train on, got nothing but a token that ends "
            f"answers ({len(emptied)} of {len(examples)} examples have one); change them, or leave them out "
            "with data.overrides=[on_bad_row=skip]"
        )
    return kept


def _without_end(text: str, ends: Sequence[str]) -> str:
    for trimmed in (text, text.rstrip()):
        for end in ends:
            if end and trimmed.endswith(end):
                return _without_end(trimmed.removesuffix(end), ends)
    return text


def _refuse_placeholders(
    examples: Sequence[Example],
    texts: Sequence[str],
    encoded: Sequence[Sequence[int]],
    *,
    image_token_ids: Sequence[int],
) -> None:
    holding = [
        (example.id, text)
        for example, text, token_ids in zip(examples, texts, encoded, strict=True)
        if not set(image_token_ids).isdisjoint(token_ids)
    ]
    if holding:
        name, text = holding[0]
        raise DataError(
            f"example {name!r}: expected a reference without image tokens, got {shown(text)}, which the "
            f"student's tokenizer reads as the place of an image ({len(holding)} of {len(examples)} examples "
            "have one); change the reference or leave the example out"
        )
