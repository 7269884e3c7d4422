"""Writing a trained student for publication: its files, checked, with a model card, and on the hub."""

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.errors import AdapterError, ConfigError, did_you_mean, one_line
from vlm_distill.files import atomic_path
from vlm_distill.models.fingerprint import fingerprint, weights_fingerprint
from vlm_distill.models.load import load_model
from vlm_distill.models.names import resolve
from vlm_distill.models.save import save_model
from vlm_distill.progress import Log
from vlm_distill.publishing.model_card import CARD, HUB_ID, LICENCE, Exported, card_settings, model_card
from vlm_distill.reporting.run_files import RunFiles, Stage, open_run, read_mapping

WARM_UP = "warmup"


def export(
    source: Path,
    target: Path,
    *,
    stage: str | None = None,
    dtype: str | None = None,
    push_to: str | None = None,
    log: Log,
) -> Path:
    """Write the student of a run, or a model, to `target` with a model card, and return that folder.

    Of a run it is the student of the last round (of the warm-up where there are no rounds), or of `stage`.
    `dtype` None keeps that of the files. The folder gets its name when it is complete; it loads with plain
    transformers. `push_to` also uploads it to that hub repository, with the token of this machine's login; a
    repository that does not exist is made, private.

    Raises:
        ConfigError: the target is not empty, there is no such stage, or the hub refuses.
        AdapterError: the model cannot be loaded, or its copy differs from it.
    """
    _require_empty(target)
    if push_to is not None:
        _require_login(push_to)
    run, chosen = _open(source, stage, log)
    folder = chosen.folder / "model" if chosen is not None else resolve(str(source))
    title = _title(source, run, chosen, push_to)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        files = temporary / "model"
        exported = _write(folder, files, title=title, name=push_to, dtype=dtype, run=run)
        with atomic_path(files / CARD) as card:
            card.write_text(model_card(exported, run, chosen), encoding="utf-8")
        # An empty folder may stand in its place.
        os.replace(files, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log(f"export: {folder} written to {target} ({exported.dtype}), checked, with a model card")
    if push_to is not None:
        _push(target, push_to, log)
    return target


def _write(
    folder: Path, files: Path, *, title: str, name: str | None, dtype: str | None, run: RunFiles | None
) -> Exported:
    """Write the model to `files`; return what its card says of it."""
    trusted = run is not None and run.setting("student.trust_remote_code") is True
    options = LoadOptions(dtype=dtype or "auto", trust_remote_code=trusted)
    facts = _copy(folder, files, options)
    return Exported(
        title=title,
        name=name,
        settings=_settings(folder, run),
        fingerprint=fingerprint(files),
        source_fingerprint=fingerprint(folder),
        **facts,
    )


def choose_stage(run: RunFiles, name: str | None) -> Stage:
    """Return the trained stage of that name, by default the last round that the config asks for."""
    trained = {stage.folder.name: stage for stage in run.stages if stage.is_trained}
    if name is None:
        rounds = int(run.setting("rounds") or 0)
        wanted, reason = f"round_{rounds}" if rounds else WARM_UP, "finish the run, or choose a stage"
    else:
        wanted, reason = _folder_name(name), "choose another stage"
    if wanted not in trained:
        raise ConfigError(
            f"{run.folder}: stage {wanted!r} is not trained; {reason}; {did_you_mean(wanted, trained)}"
        )
    return trained[wanted]


def _folder_name(stage: str) -> str:
    """Return the folder of a stage that is named as in tables or as on disk."""
    return WARM_UP if stage == "warm-up" else re.sub(r"[ -](?=round|\d)", "_", stage)


def _open(source: Path, stage: str | None, log: Log) -> tuple[RunFiles | None, Stage | None]:
    if (source / "config.yaml").is_file():
        run = open_run(source)
        return run, choose_stage(run, stage)
    if stage is not None:
        raise ConfigError(f"--stage {stage}: {source} is not the folder of a run; leave the option out")
    around = source.resolve().parent
    if (around / "stage.json").is_file() and (around.parent / "config.yaml").is_file():
        log(
            f"export: {source} belongs to the run {around.parent}; export that folder with "
            f"--stage {around.name} for a card with method, data and scores"
        )
    return None, None


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
    before = read_mapping(folder / "config.json").get("dtype")
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


def _title(source: Path, run: RunFiles | None, stage: Stage | None, push_to: str | None) -> str:
    if push_to is not None:
        return push_to.rpartition("/")[2]
    return f"{run.name}, {stage.label}" if run is not None and stage is not None else source.resolve().name


def _settings(folder: Path, run: RunFiles | None) -> dict[str, Any]:
    """Return what an older card says: of a run's start the licence, of a model all that still holds."""
    if run is None:
        return card_settings(folder, (*LICENCE, "base_model", "datasets", "language"))
    start = run.setting("student.model")
    return card_settings(Path(start).expanduser(), LICENCE) if start else {}


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
