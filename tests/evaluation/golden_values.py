"""Expected values of official scorers; VLM_DISTILL_METRIC_GOLDENS names another file of the same form."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

SHIPPED = Path(__file__).parent / "goldens" / "metrics.json"


def golden_values(*metrics: str) -> list[Any]:
    """Return the goldens of some metrics as pytest parameters; a file without them gives a skipped test."""
    path = Path(os.environ.get("VLM_DISTILL_METRIC_GOLDENS") or SHIPPED)
    goldens = json.loads(path.read_text(encoding="utf-8"))["goldens"]
    found = [pytest.param(golden, id=golden["id"]) for golden in goldens if golden["metric"] in metrics]
    assert found or path != SHIPPED, f"{path} has no goldens of {metrics}"
    return found
