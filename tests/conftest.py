"""Every test runs with shapes and types checked: jaxtyping's hook with beartype over the whole package."""

import atexit
import os
import shutil
import tempfile

# Before torch is imported: models this small only lose by threads, and one process a core is at work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# One for all processes of a session, so that each tiny model is proven once, and none for the next session.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["VLM_DISTILL_CACHE"] = tempfile.mkdtemp(prefix="verdicts-")
    atexit.register(shutil.rmtree, os.environ["VLM_DISTILL_CACHE"], ignore_errors=True)

if os.environ.get("JAXTYPING_DISABLE") != "1":
    from jaxtyping import install_import_hook

    install_import_hook("vlm_distill", "beartype.beartype")

pytest_plugins = ["tests.whole_runs"]
