"""Models inside installed Python packages: `package:NAME/path`. The package is not imported."""

import re
from pathlib import Path

from vlm_distill.errors import AdapterError, did_you_mean
from vlm_distill.packages import not_installed, package_folder

PACKAGE = "package:"


def package_path(name: str) -> Path:
    """Return the folder or GGUF file that `package:NAME/path` (or `package:NAME`) means.

    Raises:
        AdapterError: the package is not installed, or has nothing at that path.
    """
    package, _, inner = name.removeprefix(PACKAGE).partition("/")
    if not re.fullmatch(r"[A-Za-z_]\w*", package):
        raise AdapterError(f"{name}: expected {PACKAGE}NAME/path with the import name of a package")
    folder = package_folder(package)
    if folder is None:
        raise AdapterError(f"{name}: {not_installed(package)}")
    path = folder / inner
    if not path.resolve().is_relative_to(folder.resolve()):
        raise AdapterError(f"{name}: the path leaves the package")
    if not path.exists():
        models = [*folder.rglob("*.gguf"), *(config.parent for config in folder.rglob("config.json"))]
        known = [f"{PACKAGE}{package}/{model.relative_to(folder).as_posix()}" for model in models]
        raise AdapterError(f"{name}: package {package} has no such model; {did_you_mean(name, known)}")
    return path
