"""The verdict on a model: what its checks found and which facts were measured, kept for the next run.

Structure is shown on a small random copy, once for all models of one config, processor and adapter under one
set of versions. Weights are looked at once by their fingerprint.
"""

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from vlm_distill.adapters.adapter import Adapter, LoadedModel
from vlm_distill.conformance.facts import Facts
from vlm_distill.conformance.findings import Finding
from vlm_distill.errors import DataError
from vlm_distill.files import hash_json, sha256_file
from vlm_distill.packages import package_version
from vlm_distill.progress import Log
from vlm_distill.state import find_state, write_state

T = TypeVar("T")
CACHE = "VLM_DISTILL_CACHE"
PACKAGES = ("vlm-distill", "transformers", "torch", "tokenizers", "peft")
# What differs between two models of one structure.
_VOLATILE = {"_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What was found about the structure of a model, named as it was first met.

    `is_generic` says that no adapter was written for its family. `copied` says what of it was checked,
    `judge` what it was compared with, `notes` what else was seen. `findings` grow by what later runs need.
    `seconds` were taken in all.
    """

    model: str
    model_type: str
    adapter: str
    is_generic: bool
    packages: Mapping[str, str | None]
    copied: str
    judge: str
    facts: Facts
    notes: Mapping[str, str]
    findings: Mapping[str, Finding] = field(default_factory=dict)
    seconds: float = 0.0
    format_version: Literal[1] = 1

    @property
    def hash(self) -> str:
        """What tells this verdict from one with other outcomes, whatever the model was called.

        How far rounding was from the judge's is no part of it.
        """
        outcomes = {name: finding.outcome for name, finding in sorted(self.findings.items())}
        facts = [self.facts.head, self.facts.left_padding, self.facts.prefix_sharing, self.facts.one_sequence]
        return hash_json([self.model_type, self.adapter, dict(self.packages), facts, outcomes])

    def on(self, names: Iterable[str]) -> "Verdict":
        """Return the same with the named findings alone: others may have been made for another use."""
        return replace(self, findings={name: self.findings[name] for name in names})


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighed:
    """What was found about the weights of one model as they are loaded."""

    model: str
    findings: Mapping[str, Finding]
    format_version: Literal[1] = 1


def structure_key(loaded: LoadedModel) -> str:
    """Return the hash of what a verdict on structure depends on; no weight is read."""
    model: Any = loaded.model
    return hash_json(
        {
            "class": _origin(type(model)),
            "config": _json(model.config.to_dict()),
            "attention": str(getattr(model.config, "_attn_implementation", None)),
            "processor": _processor_hash(loaded),
            "ids": [loaded.stop_ids, loaded.image_token_ids],
            "adapter": _describe(loaded.adapter),
            "versions": versions(),
            "code": _code_of(Path(__file__).resolve().parents[1]),
        }
    )


def weights_key(loaded: LoadedModel) -> str:
    weight = loaded.head.weight
    return hash_json([structure_key(loaded), loaded.fingerprint, str(weight.dtype), weight.device.type])


def find_verdict(loaded: LoadedModel, log: Log) -> Verdict | None:
    """Return the verdict that is kept about a model's structure, None where none can be read."""
    return _find(Verdict, _place("structure", structure_key(loaded)), log)


def keep_verdict(loaded: LoadedModel, verdict: Verdict, log: Log) -> None:
    _keep(_place("structure", structure_key(loaded)), verdict, log)


def find_weighed(loaded: LoadedModel, log: Log) -> Weighed | None:
    return _find(Weighed, _place("weights", weights_key(loaded)), log)


def keep_weighed(loaded: LoadedModel, weighed: Weighed, log: Log) -> None:
    _keep(_place("weights", weights_key(loaded)), weighed, log)


def versions() -> dict[str, str | None]:
    return {name: package_version(name) for name in PACKAGES}


def cache_folder() -> Path:
    """Return where verdicts are kept: VLM_DISTILL_CACHE, else the user's cache."""
    own = os.environ.get(CACHE)
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "vlm_distill"


def _find(kind: type[T], path: Path, log: Log) -> T | None:
    try:
        return find_state(kind, path, remedy="it is made again")
    except DataError as error:
        log(f"conformance: {error}")
        return None


def _keep(path: Path, record: Any, log: Log) -> None:
    try:
        write_state(path, record)
    except DataError as error:
        log(f"conformance: the verdict is not kept: {error}")


def _place(kind: str, key: str) -> Path:
    return cache_folder() / "conformance" / kind / f"{key}.json"


def _processor_hash(loaded: LoadedModel) -> str:
    """Return the hash of what processor and tokenizer do, which a saved copy of them does too."""
    tokenizer, processor = loaded.tokenizer, loaded.processor
    backend = getattr(tokenizer, "backend_tokenizer", None)
    known = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    parts = [getattr(processor, name, None) for name in ("image_processor", "video_processor")]
    settings = [part.to_dict() for part in (processor, *parts) if hasattr(part, "to_dict")]
    return hash_json(
        [
            _origin(type(processor)),
            _origin(type(tokenizer)),
            known,
            _json([tokenizer.special_tokens_map, settings]),
            [_json(getattr(one, "chat_template", None)) for one in (processor, tokenizer)],
        ]
    )


def _describe(adapter: Adapter) -> list[Any]:
    """Return the hooks of an adapter by name and code, and its other fields as they are."""
    values = {one.name: getattr(adapter, one.name) for one in fields(adapter)}
    return [[name, _origin(one) if callable(one) else _json(one)] for name, one in values.items()]


def _origin(value: Any) -> list[Any]:
    """Return the name of a class or function, and the hash of the code of its package.

    A checkout changes under one version. What is in the key by version already has none.
    """
    if isinstance(value, partial):
        given = [*value.args, *(one for pair in sorted(value.keywords.items()) for one in pair)]
        return [_origin(value.func), [_origin(one) if callable(one) else _json(one) for one in given]]
    module = str(value.__module__)
    package = sys.modules.get(module.partition(".")[0])
    name = f"{module}.{getattr(value, '__qualname__', value)}"
    if package is None or package.__name__.replace("_", "-") in PACKAGES:
        return [name, None]
    # A module alone has a file and no path, a built-in one neither.
    place = next(iter(getattr(package, "__path__", [])), getattr(package, "__file__", None))
    return [name, None if place is None else _code_of(Path(place))]


@cache
def _code_of(place: Path) -> str:
    """Return the hash of the Python files of a package, or of a module alone."""
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    return hash_json([[path.relative_to(place).as_posix(), sha256_file(path)] for path in files])


def _json(value: Any) -> Any:
    """Return a value of others as JSON has it, without what differs between models of one structure."""
    if isinstance(value, Mapping):
        return {str(key): _json(one) for key, one in value.items() if key not in _VOLATILE}
    if isinstance(value, (list, tuple)):
        return [_json(one) for one in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
