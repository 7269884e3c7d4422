"""What a run has left in its folder so far: config, stages, evaluations, summary, provenance.

It is read as plain values: a report must also come out of a folder that is half done or a version older.
What each part of the page makes of it is in the files beside this one.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_distill.config import read_yaml
from vlm_distill.errors import DataError
from vlm_distill.files import read_json

SHUFFLED = ".shuffled_images"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A training stage: its name in tables and its folder, which may not exist yet."""

    label: str
    folder: Path

    @property
    def is_trained(self) -> bool:
        return (self.folder / "stage.json").is_file()


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFiles:
    """A run folder. `stages` are those of the config in their order, then others found in the folder."""

    folder: Path
    config: dict[str, Any]
    provenance: dict[str, Any]
    summary: dict[str, Any]
    stages: tuple[Stage, ...]

    def setting(self, path: str) -> Any:
        """Return the value at a dotted path of the config, None where there is none."""
        value: Any = self.config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def name(self) -> str:
        return str(self.setting("name") or self.folder.name)

    @property
    def start_label(self) -> str:
        """The label of the student before any training."""
        if self.setting("student.build"):
            return "random"
        return "shrunk" if self.setting("student.shrink") else "student"

    @property
    def expected_labels(self) -> list[str]:
        """The labels of all models that the config measures, in their order."""
        if not self.setting("evaluate"):
            return []
        labels = ["teacher"] if self.setting("teacher") and self.setting("evaluate.suite") else []
        labels.append(self.start_label)
        labels += ["warm-up"] if self.setting("warmup") else []
        rounds = range(1, int(self.setting("rounds") or 0) + 1)
        skips = self.setting("evaluate.every_round") is False
        labels += [f"round {number}" for number in rounds if number == rounds[-1] or not skips]
        return labels + [name for name, _ in _controls(self.config)]

    @property
    def found_labels(self) -> list[str]:
        """The labels of the models with a finished evaluation: those of the config first."""
        folders = {path.name for path in _folders(self.folder / "eval") if is_evaluated(path)}
        known = [label for label in self.expected_labels if label.replace(" ", "_") in folders]
        rest = sorted(folders - {label.replace(" ", "_") for label in known})
        return known + [re.sub(r"^round_", "round ", name) for name in rest]

    def evaluation(self, label: str) -> Path:
        return self.folder / "eval" / label.replace(" ", "_")


def open_run(folder: Path) -> RunFiles:
    """Return what is in a run folder.

    Raises:
        ConfigError: config.yaml is not a mapping in YAML.
        DataError: the folder is no run folder, or a JSON file in it is damaged.
    """
    if not (folder / "config.yaml").is_file():
        raise DataError(f"{folder}: expected the folder of a run, found no config.yaml in it")
    config = read_yaml(folder / "config.yaml")
    return RunFiles(
        folder=folder,
        config=config,
        provenance=read_mapping(folder / "provenance.json"),
        summary=read_mapping(folder / "summary.json"),
        stages=tuple(_stages(folder, config)),
    )


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, an empty one where there is no file.

    Raises:
        DataError: the file holds something else.
    """
    if not path.is_file():
        return {}
    try:
        value = read_json(path)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object; delete the file and run the same command again")
    return value


def is_evaluated(folder: Path) -> bool:
    """Return whether the evaluation of a model has results of a task or agreement with its teacher."""
    return (folder / "agreement.json").is_file() or any(True for _ in result_folders(folder))


def result_folders(folder: Path) -> Iterator[Path]:
    """Yield the results of one model on each task, without those with permuted images."""
    for path in _folders(folder):
        if (path / "results.json").is_file() and not path.name.endswith(SHUFFLED):
            yield path


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []


def _stages(folder: Path, config: dict[str, Any]) -> Iterator[Stage]:
    labels = ["warm-up"] if config.get("warmup") else []
    labels += [f"round {number}" for number in range(1, int(config.get("rounds") or 0) + 1)]
    for name, rounds in _controls(config):
        labels += [name] if rounds == 1 else [f"{name} round {number}" for number in range(1, rounds + 1)]
    expected = {_stage_folder(label): label for label in labels}
    for name, label in expected.items():
        yield Stage(label=label, folder=folder / name)
    for path in _folders(folder):
        if path.name not in expected and (path / "metrics.jsonl").is_file():
            yield Stage(label=path.name.replace("_", " "), folder=path)


def _stage_folder(label: str) -> str:
    return "warmup" if label == "warm-up" else label.replace(" ", "_")


def _controls(config: dict[str, Any]) -> list[tuple[str, int]]:
    """Return name and number of rounds of every control student."""
    controls = config.get("controls") or [config.get("control")]
    return [(one["name"], int(one.get("rounds") or 1)) for one in controls if one]
