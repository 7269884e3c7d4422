"""Finding shipped YAML: inside the installed wheel, or in a checkout recognised by its pyproject."""

from pathlib import Path
from typing import Literal

from vlm_distill.config.paths import user_path
from vlm_distill.errors import ConfigError, did_you_mean

Folder = Literal["configs", "data_recipes", "eval/tasks", "eval/suites"]
PACKAGE = Path(__file__).resolve().parents[1]


def asset_folder(folder: Folder) -> Path:
    """Return where the shipped YAML of one kind lies on this machine."""
    bundled = PACKAGE / "_bundled" / folder
    if bundled.is_dir():
        return bundled
    if (PACKAGE.parent / "pyproject.toml").is_file():
        return PACKAGE.parent / folder
    raise ConfigError(f"{bundled}: the shipped files are missing; install vlm-distill again")


def shipped(folder: Folder) -> dict[str, Path]:
    """Return the shipped files by name."""
    return {path.stem: path for path in sorted(asset_folder(folder).glob("*.yaml"))}


def find_yaml(name: str, *, folder: Folder) -> Path:
    """Return the file that `name` means: a path that exists wins, then the shipped file of that name.

    `configs/easy_vqa.yaml` means the shipped config on a machine without a checkout too, so that one command
    line works everywhere.
    """
    path = user_path(name)
    if path.is_file():
        return path
    known = shipped(folder)
    relative = path.as_posix().removeprefix("./").removeprefix(f"{folder}/")
    if relative.removesuffix(".yaml") in known:
        return known[relative.removesuffix(".yaml")]
    raise ConfigError(
        f"{name}: no such file, and no shipped {folder} entry of that name; {did_you_mean(path.stem, known)}"
    )
