"""The state files of a run as a test changes them: as if they had been written so."""

import json
from pathlib import Path
from typing import Any

from vlm_distill.files import write_json
from vlm_distill.state import CHECKSUM


def change_state(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    values.pop(CHECKSUM)
    write_json(path, values)


def without_checksum(config: Path) -> str:
    """Return a run's config without its first line, which a changed one would contradict."""
    return config.read_text(encoding="utf-8").partition("\n")[2]
