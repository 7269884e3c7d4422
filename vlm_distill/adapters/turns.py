"""How a chat template ends an answer: measured on a rendered turn, because stop ids have no order."""

from collections.abc import Sequence
from typing import Any

from vlm_distill.adapters.foreign import blaming
from vlm_distill.errors import AdapterError

QUESTION, ANSWER = "Which number?", "Seventeen"
ASKED = (("user", QUESTION), ("assistant", ANSWER))
# Some templates want a system message first.
OPENINGS = ((), (("system", "Be brief."),))


def end_of_turn(processor: Any, *, stop_ids: Sequence[int]) -> int | None:
    """Return the id of the token that the chat template writes behind an answer, None where it shows none.

    Whitespace before it does not count, and it is one that the tokenizer never splits. What stands behind an
    answer only when a question follows may begin that one, unless it is among `stop_ids`.
    """
    if getattr(processor, "chat_template", None) is None:
        return None
    for opening in OPENINGS:
        asked = [*opening, *ASKED]
        found = _token_behind_answer(processor, asked)
        if found is not None:
            return found
        found = _token_behind_answer(processor, [*asked, ("user", QUESTION)])
        if found in stop_ids:
            return found
    return None


def _token_behind_answer(processor: Any, turns: Sequence[tuple[str, str]]) -> int | None:
    tokenizer = getattr(processor, "tokenizer", processor)
    try:
        with blaming("its chat template cannot render an answer"):
            behind = _behind_answer(processor, turns, in_parts=tokenizer is not processor)
    except AdapterError:
        return None
    known = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
    found = [token for token in known if token and behind.startswith(token)]
    return int(tokenizer.convert_tokens_to_ids(max(found, key=len))) if found else None


def _behind_answer(processor: Any, turns: Sequence[tuple[str, str]], *, in_parts: bool) -> str:
    """Return what stands behind the answer in a rendered conversation, without leading whitespace."""
    chat = [
        {"role": role, "content": [{"type": "text", "text": text}] if in_parts else text}
        for role, text in turns
    ]
    # A template may end the last turn only before a prompt for the next one.
    is_asking = turns[-1][0] == "user"
    rendered: str = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=is_asking)
    _, answer, behind = rendered.rpartition(ANSWER)
    return behind.lstrip() if answer else ""
