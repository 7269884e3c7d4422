"""Every test runs with shapes and types checked: jaxtyping's hook with beartype over the whole package."""

import os

if os.environ.get("JAXTYPING_DISABLE") != "1":
    from jaxtyping import install_import_hook

    install_import_hook("vlm_distill", "beartype.beartype")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
