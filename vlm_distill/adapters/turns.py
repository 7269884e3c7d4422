"""How a chat template ends an answer: measured on a rendered turn, because stop ids have no order."""

from typing import Any

from vlm_distill.adapters.foreign import blaming
from vlm_distill.errors import AdapterError

QUESTION, ANSWER = "Which number?", "Seventeen"


def end_of_turn(processor: Any) -> int | None:
    """Return the id of the token that the chat template writes behind an answer, None where it shows none.

    Whitespace before it does not count, and it is one that the tokenizer never splits.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if getattr(processor, "chat_template", None) is None:
        return None
    try:
        with blaming("its chat template cannot render an answer"):
            behind = _behind_answer(processor, in_parts=tokenizer is not processor)
    except AdapterError:
        return None
    known = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
    found = [token for token in known if token and behind.startswith(token)]
    return int(tokenizer.convert_tokens_to_ids(max(found, key=len))) if found else None


def _behind_answer(processor: Any, *, in_parts: bool) -> str:
    """Return what stands behind the last answer of a rendered conversation, without leading whitespace."""
    turns = [
        {"role": role, "content": [{"type": "text", "text": text}] if in_parts else text}
        for role, text in (("user", QUESTION), ("assistant", ANSWER))
    ]
    rendered: str = processor.apply_chat_template(turns, tokenize=False)
    _, answer, behind = rendered.rpartition(ANSWER)
    return behind.lstrip() if answer else ""
