"""Names and texts of others inside Markdown: nothing in them becomes a tag, a link, a fence or a cell."""

import html
import re

from markupsafe import Markup

from vlm_distill.errors import printable

# An underscore inside a word is none.
_SPECIAL = re.compile(r"([\\`*\[\]~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


def inline_code(text: str) -> Markup:
    """Return inline code from which no text breaks out: its fence is longer than every one in the text."""
    plain = printable(" ".join(text.split()))
    margin, fence = " " if "`" in plain else "", fence_around(plain, 1)
    return Markup(f"{fence}{margin}{plain}{margin}{fence}")


def fence_around(text: str, shortest: int) -> str:
    """Return backticks, more than stand anywhere in the text side by side."""
    return "`" * max([shortest, *(len(run) + 1 for run in re.findall("`+", text))])


def plain(text: str) -> Markup:
    """Return a text that is shown as it stands, on one line; what is Markdown already stays."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(_SPECIAL.sub(r"\\\1", printable(" ".join(text.split()))), quote=False))


def prose(text: str) -> Markup:
    """Return Markdown of ours or of the user without HTML, on one line."""
    return Markup(html.escape(printable(" ".join(text.split())), quote=False))
