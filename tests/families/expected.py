"""Which checks a family fails, of those that fail any; the others are right."""

FAILS: dict[str, set[str]] = {}
