"""Distil large text and vision-language models into small ones.

The names of `__all__` are loaded when they are asked for: importing the package loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm_distill.adapters.adapter import Adapter as Adapter
    from vlm_distill.adapters.adapter import LoadedModel as LoadedModel
    from vlm_distill.adapters.adapter import LoadOptions as LoadOptions
    from vlm_distill.conformance.prove import prove as prove
    from vlm_distill.losses import DistiLLM2 as DistiLLM2
    from vlm_distill.losses import RowGroup as RowGroup
    from vlm_distill.losses import Rows as Rows
    from vlm_distill.losses import SkewKL as SkewKL
    from vlm_distill.losses import SkewReverseKL as SkewReverseKL
    from vlm_distill.losses import linear_divergence as linear_divergence
    from vlm_distill.models.load import load_model as load_model
    from vlm_distill.models.save import save_model as save_model
    from vlm_distill.runs.config import RunConfig as RunConfig
    from vlm_distill.runs.config import load_run as load_run
    from vlm_distill.runs.pipeline import run as run
    from vlm_distill.students.build import BuildConfig as BuildConfig
    from vlm_distill.students.build import build_llava as build_llava

__version__ = "0.1.0"
_HOMES = {
    "Adapter": "adapters.adapter",
    "BuildConfig": "students.build",
    "DistiLLM2": "losses",
    "LoadOptions": "adapters.adapter",
    "LoadedModel": "adapters.adapter",
    "RowGroup": "losses",
    "Rows": "losses",
    "RunConfig": "runs.config",
    "SkewKL": "losses",
    "SkewReverseKL": "losses",
    "build_llava": "students.build",
    "linear_divergence": "losses",
    "load_model": "models.load",
    "load_run": "runs.config",
    "prove": "conformance.prove",
    "run": "runs.pipeline",
    "save_model": "models.save",
}
__all__ = ["__version__", *_HOMES]


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


if not TYPE_CHECKING:  # A type checker that saw this would believe every name.

    def __getattr__(name: str) -> object:
        if name in _HOMES:
            return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
