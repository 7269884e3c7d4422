"""Lists in cells of text: tables such as CSV have no other form for them."""

import ast
import json
import warnings
from typing import Any


def list_in(text: str) -> list[Any] | None:
    """Return the list that a text holds as JSON, or as pandas writes it to CSV; None for other texts."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            # Of backslashes, which Python warns about.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return found if isinstance(found, list) else None
    return None


def unpacked(value: Any) -> Any:
    """Return the list that a cell of text holds, every other cell as it is."""
    found = list_in(value) if isinstance(value, str) else None
    return value if found is None else found
