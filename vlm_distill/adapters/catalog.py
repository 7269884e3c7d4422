"""Known model families, and models by name: find the folder, load it, identify it, save it.

A model name in a config is a path, a hub id, `bundled:NAME` (data of this package) or `package:NAME/path`
(data of another); a path may end at a GGUF file. Models are built from parts in llava.py and shrink.py.
"""

import hashlib
import os
import shutil
import tempfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from vlm_distill.adapters.adapter import Adapter, LoadedModel, LoadOptions
from vlm_distill.adapters.chat import (
    CAUSAL_LM,
    find_placeholder_ids,
    find_stop_ids,
    image_text_adapter,
    one_line,
)
from vlm_distill.adapters.gguf import SUFFIX, UNREADABLE, is_gguf, load_gguf, location
from vlm_distill.adapters.package_data import PACKAGE, package_path
from vlm_distill.adapters.qwen_vl import QWEN_VL
from vlm_distill.adapters.vision_features import tower_features
from vlm_distill.errors import AdapterError, did_you_mean
from vlm_distill.files import hash_json, read_json, sha256_file, write_json

ASSETS = Path(__file__).resolve().parents[1] / "assets"
BUNDLED = "bundled:"
ENTRY_POINTS = "vlm_distill.adapters"
SETTINGS_FILES = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
)
TOWER = "vision_tower."


def _clip_tower_name(name: str) -> str:
    # transformers 5.18 and later drop the `vision_model.` level on disk; vLLM wants it and transformers reads
    # both.
    rest = name.removeprefix(TOWER)
    return (
        f"{TOWER}vision_model.{rest}"
        if name.startswith(TOWER) and not rest.startswith("vision_model.")
        else name
    )


def _has_clip_tower(config: Any) -> bool:
    vision = getattr(config, "vision_config", None)
    return config.model_type in LLAVA.model_types and getattr(vision, "model_type", "") == "clip_vision_model"


LLAVA = image_text_adapter(
    "llava",
    ("llava",),
    parts={
        "vision": ("model.vision_tower.",),
        "projector": ("model.multi_modal_projector.",),
        "language": ("model.language_model.", "lm_head."),
    },
    vision_features=tower_features,
)
ADAPTERS: dict[str, Adapter] = {"causal_lm": CAUSAL_LM, "llava": LLAVA, "qwen_vl": QWEN_VL}


def find_adapter(model_type: str) -> Adapter:
    """Return the adapter of a `model_type`; installed packages add families through the entry-point group.

    Any causal language model of transformers gets the generic text adapter. An image-text family must be
    known, because position ids and extra tensors differ between them and a wrong guess would train without an
    error.
    """
    installed: list[Adapter] = [point.load() for point in entry_points(group=ENTRY_POINTS)]
    by_type = {
        known: adapter for adapter in [*ADAPTERS.values(), *installed] for known in adapter.model_types
    }
    if model_type in by_type:
        return by_type[model_type]
    if model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise AdapterError(
            f"model type {model_type!r}: an image-text family without an adapter; "
            f"write one for the entry-point group {ENTRY_POINTS!r}; {did_you_mean(model_type, by_type)}"
        )
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return CAUSAL_LM
    raise AdapterError(
        f"model type {model_type!r}: not a text or image-text model; {did_you_mean(model_type, by_type)}"
    )


def bundled_models() -> dict[str, Path]:
    """Return the models that are shipped as package data, by name."""
    return {path.parent.name: path.parent for path in sorted(ASSETS.glob("*/config.json"))}


def resolve(name: str, *, weights: bool = True, trust_remote_code: bool = False) -> Path:
    """Return the local folder or GGUF file that a name means, downloading a hub id that is not in the cache.

    Without `weights`, only config, tokenizer and processor are fetched and required.

    Raises:
        AdapterError: there is no such folder, file, package or hub repository, or files are missing in it.
    """
    if name.startswith(BUNDLED):
        known = bundled_models()
        if name.removeprefix(BUNDLED) not in known:
            raise AdapterError(
                f"{name}: no such bundled model; {did_you_mean(name.removeprefix(BUNDLED), known)}"
            )
        folder = known[name.removeprefix(BUNDLED)]
    elif name.startswith(PACKAGE):
        folder = package_path(name)
    elif Path(name).expanduser().exists():
        folder = Path(name).expanduser()
    else:
        folder = _download(name, weights=weights, trust_remote_code=trust_remote_code)
    if weights and not is_gguf(folder):
        _require_weights(folder, name)
    return folder


def _download(name: str, *, weights: bool, trust_remote_code: bool) -> Path:
    known = [f"{BUNDLED}{model}" for model in bundled_models()]
    if name.endswith(SUFFIX):
        beside = [str(path) for path in Path(name).expanduser().parent.glob(f"*{SUFFIX}")]
        raise AdapterError(f"{name}: no such file; {did_you_mean(name, beside)}")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise AdapterError(
            f"{name}: no such folder, and not a hub id (owner/name); {did_you_mean(name, known)}"
        )
    patterns = list(SETTINGS_FILES)
    patterns += ["*.safetensors", "*.safetensors.index.json"] if weights else []
    patterns += ["*.py"] if trust_remote_code else []
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"{name}: no such folder, and the hub did not give it: {one_line(error)}; "
            f"{did_you_mean(name, known)}"
        ) from None


def _require_weights(folder: Path, name: str) -> None:
    if not (folder / "config.json").is_file():
        raise AdapterError(f"{name}: expected a model folder with config.json, found none in {folder}")
    if not list(folder.glob("*.safetensors")):
        pickled = [path.name for path in [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]]
        hint = f"; {pickled[0]} can run code when read: convert it to safetensors first" if pickled else ""
        raise AdapterError(f"{name}: expected weights as *.safetensors, found none in {folder}{hint}")


def load_model(name: str, options: LoadOptions = LoadOptions()) -> LoadedModel:  # noqa: B008 (frozen)
    """Return the model that `name` means (path, hub id or `bundled:NAME`), in eval mode and on its device.

    Raises:
        AdapterError: the name means nothing, the folder is incomplete, or no adapter knows its family.
    """
    path = resolve(name, trust_remote_code=options.trust_remote_code)
    config = load_config(path, name, trust_remote_code=options.trust_remote_code)
    adapter = find_adapter(config.model_type)
    if is_gguf(path):
        model, processor = load_gguf(str(path), config, options)
    else:
        model, processor = adapter.load(str(path), options)
    return wrap_model(adapter, model, processor, path=name, fingerprint=model_fingerprint(path, options))


def model_fingerprint(path: Path, options: LoadOptions) -> str:
    """Return the fingerprint of a model that is loaded from `path` with `options`."""
    known = fingerprint(path)
    # Quantised weights answer differently.
    return known if options.quantisation is None else hash_json([known, dict(options.quantisation)])


def load_config(path: Path, name: str, *, trust_remote_code: bool = False) -> Any:
    """Return the transformers config of a model folder or GGUF file; `name` stands in errors."""
    try:
        return AutoConfig.from_pretrained(
            **location(path), trust_remote_code=trust_remote_code, local_files_only=True
        )
    except UNREADABLE as error:
        raise AdapterError(
            f"{name}: {'it' if is_gguf(path) else 'config.json'} cannot be read: {one_line(error)}"
        ) from None


def wrap_model(
    adapter: Adapter, model: nn.Module, processor: Any, *, path: str, fingerprint: str | None = None
) -> LoadedModel:
    """Return a model in memory with its tokenizer and stop ids; the default fingerprint is of its weights."""
    tokenizer = getattr(processor, "tokenizer", processor)
    return LoadedModel(
        adapter=adapter,
        model=model,
        processor=processor,
        tokenizer=tokenizer,
        path=path,
        fingerprint=fingerprint or weights_fingerprint(model),
        stop_ids=find_stop_ids(getattr(model, "generation_config", None), tokenizer),
        placeholder_ids=find_placeholder_ids(getattr(model, "config", None)),
    )


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of the model `name`, which needs no weights."""
    path = resolve(name, weights=False, trust_remote_code=trust_remote_code)
    try:
        return AutoTokenizer.from_pretrained(
            **location(path), local_files_only=True, trust_remote_code=trust_remote_code
        )
    except UNREADABLE as error:
        raise AdapterError(f"{name}: no tokenizer can be loaded: {one_line(error)}") from None


def fingerprint(model: Path | str | LoadedModel) -> str:
    """Return a hash of everything that decides what a model answers.

    Of a folder: weights, config, tokenizer and processor files, not their location or other files beside
    them. Of a GGUF file: the file. Of a model in memory: the bytes of its state dict. The two hashes of one
    model differ.
    """
    if isinstance(model, LoadedModel):
        return weights_fingerprint(model.model)
    folder = Path(model)
    if is_gguf(folder):
        return hash_json({"gguf": sha256_file(folder)})
    files = [folder / name for name in SETTINGS_FILES] + sorted(folder.glob("*.safetensors"))
    return hash_json({path.name: sha256_file(path) for path in files if path.is_file()})


def weights_fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        # numpy has no bfloat16, so the bytes are hashed.
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_model(loaded: LoadedModel, folder: Path) -> None:
    """Write weights (safetensors), configs, processor and chat template; an existing folder is replaced.

    The folder gets its name only when it is complete. It loads with plain transformers and with vLLM.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        model: Any = loaded.model
        model.save_pretrained(temporary)
        loaded.processor.save_pretrained(temporary)
        if _has_clip_tower(model.config):
            _rename_weights(temporary)
        for path in temporary.rglob("*"):
            if path.is_file():
                path.chmod(0o644)  # safetensors writes for the owner alone
                with path.open("rb") as handle:
                    os.fsync(handle.fileno())
        temporary.chmod(0o755)  # mkdtemp makes it private
        if folder.exists():
            # A folder cannot be replaced in one step; the old one steps aside first.
            previous = temporary.with_suffix(".old")
            os.replace(folder, previous)
            os.replace(temporary, folder)
            shutil.rmtree(previous)
        else:
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename_weights(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata()
            tensors = {_clip_tower_name(name): handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        renamed = path.with_suffix(".tmp")
        save_file(tensors, renamed, metadata)
        os.replace(renamed, path)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = read_json(index)
        content["weight_map"] = {_clip_tower_name(name): file for name, file in content["weight_map"].items()}
        write_json(index, content)
