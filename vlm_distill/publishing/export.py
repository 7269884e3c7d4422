"""Writing a trained student for publication: its files, checked, with a model card, and on the hub."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.config import user_path
from vlm_distill.errors import AdapterError, ConfigError, did_you_mean, one_line
from vlm_distill.faults import writing
from vlm_distill.files import atomic_path, read_json, take_name
from vlm_distill.models.fingerprint import fingerprint, weights_fingerprint
from vlm_distill.models.load import load_model
from vlm_distill.models.names import resolve
from vlm_distill.models.save import save_model
from vlm_distill.progress import Log
from vlm_distill.publishing.model_card import (
    CARD,
    HUB_ID,
    LICENCE,
    Exported,
    Student,
    card_settings,
    model_card,
)
from vlm_distill.reporting.facts import Run, Training, open_run
from vlm_distill.runs.folder import CONFIG, locked
from vlm_distill.runs.plan import ROUNDS, WARMUP


def export(
    source: Path,
    target: Path,
    *,
    stage: str | None = None,
    options: LoadOptions = LoadOptions(dtype="auto"),  # noqa: B008 (frozen)
    push_to: str | None = None,
    log: Log,
) -> Path:
    """Write the student of a run, or a model, to `target` with a model card, and return that folder.

    Of a run it is the student of the last round (of the warm-up where there are no rounds), or of `stage`.
    A `dtype` of "auto" keeps that of the files. A model's own code runs if `options` say so, never because
    the folder does: it may be a stranger's. The folder gets its name when it is complete; it loads with plain
    transformers. `push_to` also uploads it to that hub repository, with the token of this machine's login; a
    repository that does not exist is made, private.

    Raises:
        ConfigError: the target is not empty, there is no such stage, or the hub refuses.
        AdapterError: the model cannot be loaded, or its copy differs from it.
    """
    _require_empty(target)
    if push_to is not None:
        _require_login(push_to)
    student = _open(source, stage, log)
    folder = student.training.folder / "model" if student is not None else resolve(str(source))
    title = _title(source, student, push_to)
    with _workplace(target) as files:
        run = student.run if student is not None else None
        exported = _write(folder, files, options, title=title, name=push_to, run=run)
        with atomic_path(files / CARD) as card:
            card.write_text(model_card(exported, student), encoding="utf-8", errors="replace")
        with writing(target):
            # An empty folder may stand in its place.
            take_name(files, target)
    log(f"export: {folder} written to {target} ({exported.dtype}), checked, with a model card")
    if push_to is not None:
        _push(target, push_to, log)
    return target


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """Yield where the files are written before they take the name of the target.

    It is made anew, whatever a killed export has left there, and gone at the end.

    Raises:
        DataError: another process is writing to the same target.
        ConfigError: another process has written it since.
        StorageError: it cannot be written.
    """
    place = target.with_name(f".{target.name}.export.tmp")
    with ExitStack() as held:
        # Not around the block, which also reads.
        with writing(target):
            held.enter_context(locked(place, shown=target))
        try:
            _require_empty(target)
            shutil.rmtree(place / "model", ignore_errors=True)
            yield place / "model"
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _write(
    folder: Path, files: Path, options: LoadOptions, *, title: str, name: str | None, run: Run | None
) -> Exported:
    """Write the model to `files`; return what its card says of it."""
    facts = _copy(folder, files, options)
    return Exported(
        title=title,
        name=name,
        settings=_settings(folder, run),
        fingerprint=fingerprint(files),
        source_fingerprint=fingerprint(folder),
        **facts,
    )


def choose_training(run: Run, name: str | None) -> Training:
    """Return the trained stage of that name, as in tables, on disk or in the plan; by default the last round.

    Without rounds it is the warm-up. The last round is that which the config asks for, trained or not.
    """
    reason = "choose another stage"
    if name is None:
        name = (run.track(ROUNDS) or run.track(WARMUP))[-1].step.stage
        reason = "finish the run, or choose a stage"
    trained = [one for one in run.trainings if one.is_trained]
    for one in trained:
        if name in (one.step.label, one.step.folder, one.step.stage):
            return one
    known = did_you_mean(name, [one.step.stage for one in trained])
    raise ConfigError(f"{run.folder}: stage {name!r} is not trained; {reason}; {known}")


def _open(source: Path, stage: str | None, log: Log) -> Student | None:
    if (source / CONFIG).exists():
        run = open_run(source)
        return Student(run=run, training=choose_training(run, stage))
    if stage is not None:
        raise ConfigError(f"--stage {stage}: {source} is not the folder of a run; leave the option out")
    around = source.resolve().parent
    if (around / "stage.json").is_file() and (around.parent / CONFIG).is_file():
        log(
            f"export: {source} belongs to the run {around.parent}; export that folder with "
            f"--stage {around.name} for a card with method, data and scores"
        )
    return None


def _require_empty(target: Path) -> None:
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise ConfigError(f"{target}: already exists; give a folder that does not, or delete this one")


def _copy(folder: Path, files: Path, options: LoadOptions) -> dict[str, Any]:
    """Write the model and load what was written; return what the card says of it.

    Raises:
        AdapterError: the written model differs.
    """
    expected, facts = _identity(load_model(str(folder), options), save_to=files)
    found, _ = _identity(load_model(str(files), options))
    if differing := [name for name, value in expected.items() if found[name] != value]:
        raise AdapterError(
            f"{folder}: transformers does not read back what it saved ({', '.join(differing)} differ); "
            "nothing is written"
        )
    config = folder / "config.json"
    # A GGUF file has no config beside it.
    before = read_json(config).get("dtype") if config.is_file() else None
    return facts | {"converted": options.dtype not in ("auto", before)}


def _identity(loaded: LoadedModel, *, save_to: Path | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what must survive a copy, and what the card says. The model is gone from memory afterwards."""
    if save_to is not None:
        save_model(loaded, save_to)
    must_survive = {
        "weights": weights_fingerprint(loaded.model),
        "tokenizer": loaded.tokenizer.get_vocab(),
        "chat template": getattr(loaded.processor, "chat_template", None),
        "stop ids": loaded.stop_ids,
    }
    facts = {
        "reads_images": bool(loaded.image_token_ids),
        "num_parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "dtype": str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
    }
    return must_survive, facts


def _title(source: Path, student: Student | None, push_to: str | None) -> str:
    if push_to is not None:
        return push_to.rpartition("/")[2]
    if student is None:
        return source.resolve().name
    return f"{student.run.name}, {student.training.label}"


def _settings(folder: Path, run: Run | None) -> dict[str, Any]:
    """Return what an older card says: of a run's start the licence, of a model all that still holds."""
    if run is None:
        return card_settings(folder, (*LICENCE, "base_model", "datasets", "language"))
    start = run.setting("student.model")
    return card_settings(user_path(start), LICENCE) if start else {}


def _require_login(push_to: str) -> None:
    if not HUB_ID.match(push_to):
        raise ConfigError(f"--push {push_to}: expected owner/name of a hub repository")
    if get_token() is None:
        raise ConfigError(
            f"--push {push_to}: no Hugging Face token on this machine; run `hf auth login` or set HF_TOKEN"
        )


def _push(folder: Path, repository: str, log: Log) -> None:
    hub = HfApi()
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload the exported model")
    # Of a failed connection httpx has its own error, which is no OSError.
    except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
        reason = one_line(error)
        raise ConfigError(
            f"--push {repository}: the hub did not take it: {reason}; the export is complete in {folder}, "
            f"upload it again with `hf upload {repository} {folder}`"
        ) from None
    log(f"export: uploaded to {repository}; a repository that is new is private until you change that")
