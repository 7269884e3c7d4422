"""Paths and names of models as a user writes them, in a config or on the command line."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from vlm_distill.errors import ConfigError, shown

_LONGEST_PATH, _LONGEST_NAME = 4095, 255


def user_path(text: str) -> Path:
    """Return the path that is written, with `~` expanded; nothing needs to be there.

    Raises:
        ConfigError: no file of this machine can be called that.
    """
    try:
        path = Path(text).expanduser()
        parts = [os.fsencode(part) for part in path.parts]
    except (RuntimeError, UnicodeEncodeError) as error:
        raise ConfigError(f"expected a path, got {shown(text)}: {error}") from None
    is_long = len(os.fsencode(path)) > _LONGEST_PATH or max(map(len, parts), default=0) > _LONGEST_NAME
    if not text.strip() or "\0" in text or is_long:
        wrong = "longer than a path can be" if is_long else "empty or with a NUL in it"
        raise ConfigError(f"expected a path, got {shown(text)}, which is {wrong}")
    return path


def _checked(text: str) -> str:
    user_path(text)
    return text


PathText = Annotated[str, AfterValidator(_checked)]
"""A path, or a name that may be one, in a record: what no file can be called does not decode."""
