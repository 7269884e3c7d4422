"""Models by name: where a config's model is on disk.

A name is a path, a hub id, `bundled:NAME` (data of this package) or `package:NAME/path` (data of another); a
path may end at a GGUF file. How a folder is read is in load.py.
"""

from pathlib import Path

from huggingface_hub import snapshot_download

from vlm_distill.config import user_path
from vlm_distill.errors import AdapterError, did_you_mean, one_line, shown
from vlm_distill.files import read_json
from vlm_distill.models.gguf import SUFFIX, is_gguf
from vlm_distill.models.package_data import PACKAGE, package_path

ASSETS = Path(__file__).resolve().parents[1] / "assets"
BUNDLED = "bundled:"
ADAPTER = "adapter_config.json"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
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
    elif user_path(name).exists():
        folder = user_path(name)
    else:
        folder = _download(name, weights=weights, trust_remote_code=trust_remote_code)
    if weights and not is_gguf(folder):
        _require_weights(folder, name)
    return folder


def _download(name: str, *, weights: bool, trust_remote_code: bool) -> Path:
    known = [f"{BUNDLED}{model}" for model in bundled_models()]
    if name.endswith(SUFFIX):
        beside = [str(path) for path in user_path(name).parent.glob(f"*{SUFFIX}")]
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


def weight_files(folder: Path) -> list[Path]:
    """Return the files that the weights of a model folder are loaded from.

    Raises:
        AdapterError: the index is damaged, or names a file that is not in the folder.
    """
    index = folder / WEIGHTS_INDEX
    # As transformers does it: one file goes before parts.
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return [path for path in (folder / WEIGHTS,) if path.is_file()]
    try:
        names = list(dict.fromkeys(read_json(index)["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise AdapterError(f"{index}: damaged; expected a `weight_map` of tensors to files") from None
    for name in names:
        # What is loaded must be what is hashed and copied: nothing outside of the folder.
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or "\0" in name:
            raise AdapterError(f"{index}: expected names of files beside it, got {shown(name)}")
        if not (folder / name).is_file():
            raise AdapterError(f"{index}: names {name}, which is not there; fetch the model again")
    return [folder / name for name in sorted(names)]


def _require_weights(folder: Path, name: str) -> None:
    if not (folder / "config.json").is_file():
        raise AdapterError(f"{name}: expected a model folder with config.json, found none in {folder}")
    if (folder / ADAPTER).is_file():
        raise AdapterError(
            f"{name}: {ADAPTER} would change the weights beside it as they are loaded; merge it into them "
            "(`merge_and_unload` of peft), or move the file away"
        )
    if not weight_files(folder):
        pickled = [path.name for path in [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]]
        hint = f"; {pickled[0]} can run code when read: convert it to safetensors first" if pickled else ""
        raise AdapterError(
            f"{name}: expected weights as {WEIGHTS} or {WEIGHTS_INDEX}, found none in {folder}{hint}"
        )
