"""Text that can be stored as UTF-8 and handed to a tokenizer as it is."""

# Bytes that are no UTF-8 are read as halves of surrogate pairs: only the row that has them is refused.
KEEP_BYTES = "surrogateescape"


def is_unicode(text: str) -> bool:
    """Return whether text has no half of a surrogate pair, which no file can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
