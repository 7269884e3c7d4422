"""A model in memory to a folder that plain transformers and vLLM load."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open
from safetensors.torch import save_file

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.files import atomic_folder, read_json, write_json
from vlm_distill.models.fingerprint import record_of, write_record
from vlm_distill.models.names import WEIGHTS_INDEX


def save_model(loaded: LoadedModel, folder: Path) -> None:
    """Write weights (safetensors), configs, processor and chat template; an existing folder is replaced.

    The folder gets its name only when it is complete. It loads with plain transformers and with vLLM.

    Raises:
        StorageError: it cannot be written; an existing folder is as it was.
    """
    with atomic_folder(folder) as temporary:
        model: Any = loaded.model
        model.save_pretrained(temporary)
        loaded.processor.save_pretrained(temporary)
        if loaded.adapter.state_dict_names is not None:
            _rename_weights(temporary, partial(loaded.adapter.state_dict_names, model.config))
        for path in filter(Path.is_file, temporary.rglob("*")):
            path.chmod(0o644)  # safetensors writes for the owner alone


def save_recorded(loaded: LoadedModel, folder: Path, *, delete: Literal[".", ".."]) -> None:
    """Write a model of a run, and the record with which it is compared when it is loaded.

    `delete` says what has to go to have it made again: the folder, or the one around it.
    """
    record_of(folder).unlink(missing_ok=True)
    save_model(loaded, folder)
    write_record(folder, delete=delete)


def _rename_weights(folder: Path, name_on_disk: Callable[[str], str]) -> None:
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata()
            tensors = {name_on_disk(name): handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        renamed = path.with_suffix(".tmp")
        save_file(tensors, renamed, metadata)
        os.replace(renamed, path)
    index = folder / WEIGHTS_INDEX
    if index.is_file():
        content = read_json(index)
        content["weight_map"] = {name_on_disk(name): file for name, file in content["weight_map"].items()}
        write_json(index, content)
