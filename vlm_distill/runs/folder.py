"""The folder of a run: one job at a time, one config for its life, and where everything came from."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vlm_distill.config import decode, dump_yaml, read_yaml
from vlm_distill.data.dataset import read_manifest
from vlm_distill.data.store import all_stored
from vlm_distill.errors import ConfigError, DataError, few, printable
from vlm_distill.files import LOCK, atomic_path, read_text, remove_temporaries, sha256_bytes
from vlm_distill.processes import is_main, on_main, wait
from vlm_distill.runs.config import RunConfig
from vlm_distill.runs.evaluator import has_agreement, has_answers
from vlm_distill.runs.plan import HELD_OUT, STAGES, Kind, Step, plan_format, read_plan, write_plan
from vlm_distill.state import damaged, find_state
from vlm_distill.training.config import MECHANICAL
from vlm_distill.training.train import find_trained

CONFIG = "config.yaml"
HEADER = "# The resolved config of this run, with every default; sha256 of the lines below: "
# By the format of stages.json: the last commit that reads such a run.
LAST_READERS = {None: "0720526", 1: "a03bbca"}
# What may change between two starts in one folder, because no trained result depends on it.
FREE_KEYS = (
    "evaluate",
    "output",
    "device",
    "controls",
    "rounds",
    "generate.engine",
    "vision_cache",
    "cache.batch_size",
    *(f"{stage}.{key}" for stage in ("train", "warmup.train") for key in MECHANICAL),
)
ARTEFACTS = ("*/stage.json", "*/checkpoints", "responses/*/manifest.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cached:
    """The mark of a cache step that is done."""

    items: int


def print_log(line: str) -> None:
    """Print one line of progress with the time of day, from the main process only."""
    if not is_main():
        return
    print(f"{time.strftime('%H:%M:%S')} {printable(line)}", file=sys.stderr, flush=True)


@contextmanager
def open_folder(config: RunConfig, steps: Sequence[Step], *, check: Callable[[], None]) -> Iterator[Path]:
    """Yield the run folder, locked against a second job and bound to this config by the main process.

    Nothing in it changes before `check` has returned. Its plan is written before its config.

    Raises:
        ConfigError: the folder was started with another config.
        DataError: another job is running in it, or as `check`.
    """
    folder = config.folder
    with ExitStack() as held:

        def claim() -> None:
            held.enter_context(locked(folder))
            _require_same_config(config, folder)
            check()
            _bind(config, folder, steps)
            remove_temporaries(folder)

        on_main(claim)
        yield folder
        # The lock outlasts the last reader.
        wait()


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold the folder of an evaluation in the main process, and the run that it lies in; others wait for it.

    Raises:
        ConfigError: a run keeps its own results there.
        DataError: another process has one of them.
    """
    with ExitStack() as held:

        def claim() -> None:
            around = [one for one in (folder, *folder.resolve().parents) if (one / STAGES).is_file()]
            for run in around:
                _require_apart(folder, run)
            for one in dict.fromkeys((folder, *around)):
                held.enter_context(locked(one))
            remove_temporaries(folder)

        on_main(claim)
        yield
        wait()


def _require_apart(folder: Path, run: Path) -> None:
    """Refuse a folder inside a run in which a step of the run has results, or would look for them."""
    place = folder.resolve().relative_to(run.resolve())
    for step in read_plan(run):
        if place in (own := Path(step.folder), *own.parents) or own in place.parents:
            raise ConfigError(
                f"{folder}: is where the run {run} keeps results of its own ({step.name}); give another "
                "`--output`"
            )


@contextmanager
def locked(folder: Path, *, shown: Path | None = None) -> Iterator[None]:
    """Hold a folder, which is made where there is none, against other processes.

    Raises:
        DataError: another one has it; the line names the folder as `shown`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise DataError(
            f"{shown or folder}: another process is running here; wait for it or give another `output`"
        ) from None
    try:
        yield
    finally:
        lock.release()


def require_plan(folder: Path) -> None:
    """Refuse the folder of a run that has no plan in the present format, before anything in it is touched.

    Raises:
        DataError: it was made by an earlier version.
    """
    version, config = plan_format(folder), folder / CONFIG
    if version not in LAST_READERS or not config.exists():
        return
    if version is None and read_text(config).startswith(HEADER):
        return  # Its plan is gone, and written anew.
    found = f"config.yaml without {STAGES}" if version is None else f"{STAGES} in format {version}"
    raise DataError(
        f"{folder}: is the folder of a run by an earlier version ({found}), which commit "
        f"{LAST_READERS[version]} is the last to read; give the run another `output`; models inside it still "
        "load by their paths"
    )


def is_complete(folder: Path, step: Step) -> bool:
    """Return whether another step can use what a step has left in the folder of its run.

    Of an evaluation: whether its answers are there, of whichever models.
    """
    return _COMPLETE[step.kind](folder, step)


def _is_prepared(folder: Path, step: Step) -> bool:
    if step.stage == "data":
        return read_manifest(folder / step.folder) is not None
    return step.settings["model"] is not None or (folder / f"{step.folder}.json").is_file()


def _is_generated(folder: Path, step: Step) -> bool:
    if step.stage == HELD_OUT and _holds_nothing_out(folder):
        return True
    return all_stored(folder / step.folder)


def _is_cached(folder: Path, step: Step) -> bool:
    sets = (folder / "cache" / name for name in step.settings["of"].values())
    mark = folder / f"{step.folder}.json"
    is_marked = find_state(Cached, mark, remedy=f"delete {mark}, and the run writes it again") is not None
    return (is_marked and all(path.is_dir() for path in sets)) or (
        step.stage == HELD_OUT and _holds_nothing_out(folder)
    )


def _is_measured(folder: Path, step: Step) -> bool:
    where, settings = folder / step.folder, step.settings
    agrees = not settings["compares"] or has_agreement(where) or _holds_nothing_out(folder)
    return agrees and has_answers(where, settings["suite"], shuffle_images=settings["shuffle_images"])


def _holds_nothing_out(folder: Path) -> bool:
    """Return whether the data are prepared and have no held-out prompts."""
    manifest = read_manifest(folder / "data")
    return manifest is not None and not manifest.counts.get("held_out")


_COMPLETE: dict[Kind, Callable[[Path, Step], bool]] = {
    "prepare": _is_prepared,
    "generate": _is_generated,
    "cache": _is_cached,
    "train": lambda folder, step: find_trained(folder / step.folder) is not None,
    "evaluate": _is_measured,
}


def _require_same_config(config: RunConfig, folder: Path) -> None:
    # Before the first result there is nothing that another config could contradict.
    if (folder / CONFIG).exists() and any(True for pattern in ARTEFACTS for _ in folder.glob(pattern)):
        changed = sorted(_differences(read_config(folder), config.model_dump(mode="json")))
        if changed:
            raise ConfigError(
                f"{folder}: was started with another config ({few(changed, most=5)} changed); "
                "give the run another `output`, or delete the folder to start anew"
            )


def _bind(config: RunConfig, folder: Path, steps: Sequence[Step]) -> None:
    write_plan(folder, steps)
    with atomic_path(folder / CONFIG) as temporary:
        text = dump_yaml(config.model_dump(mode="json"))
        temporary.write_text(f"{HEADER}{sha256_bytes(text.encode('utf-8'))}\n{text}", encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """Return the config of a run folder.

    One without the checksum that a run writes into its first line is decoded instead of compared.

    Raises:
        DataError: it is not what the run wrote.
        ConfigError: it is no config.
    """
    path, remedy = folder / CONFIG, "delete it and start the run again, which writes it anew"
    try:
        values = read_yaml(path)
    except ConfigError as error:
        raise damaged(path, str(error), remedy=remedy) from None
    header, _, text = path.read_text(encoding="utf-8").partition("\n")
    if not header.startswith(HEADER):
        decode(RunConfig, values, where=str(path))
    elif header.removeprefix(HEADER) != sha256_bytes(text.encode("utf-8")):
        raise damaged(path, "changed after it was written", remedy=remedy)
    return values


def _differences(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            if f"{prefix}{key}" not in FREE_KEYS:
                yield from _differences(old.get(key), new.get(key), f"{prefix}{key}.")
    elif old != new:
        yield prefix.removesuffix(".")
