"""Every test runs with shapes and types checked: jaxtyping's hook with beartype over the whole package."""

import os

# Before torch is imported: models this small only lose by threads, and one process a core is at work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if os.environ.get("JAXTYPING_DISABLE") != "1":
    from jaxtyping import install_import_hook

    install_import_hook("vlm_distill", "beartype.beartype")

import pytest

pytest_plugins = ["tests.whole_runs"]
WHOLE_RUNS = {"finished", "cached", "text_only"}


# First, because xdist writes the groups into the ids when its turn comes.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one process make the whole runs that many tests read."""
    for item in items:
        if WHOLE_RUNS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group("whole_runs"))
