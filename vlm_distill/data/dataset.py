"""A prepared data set on disk: two JSONL files of examples, a folder of images, a manifest written last."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vlm_distill.data.examples import example_from_json, example_to_json
from vlm_distill.data.images import ImageStore
from vlm_distill.errors import DataError
from vlm_distill.files import atomic_path, hash_json, sha256_file
from vlm_distill.records import Example
from vlm_distill.state import damaged, find_state, write_state

MANIFEST = "manifest.json"
PARTS = ("train", "held_out")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """A file of examples."""

    rows: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a prepared data set says of itself.

    `key` is the hash of the recipe and of the state of its sources. `sources` have a `text` and, on the hub,
    a `hub_id`.
    """

    key: str
    recipe: Mapping[str, Any]
    sources: tuple[Mapping[str, str | None], ...]
    counts: Mapping[str, int]
    files: Mapping[str, DataFile]
    fingerprint: str
    format_version: Literal[1] = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Examples to train on and examples held out, with their images.

    `counts` say what became of every row of every source; `fingerprint` is the hash of all examples in both
    parts. `skips_bad_rows` is what the recipe says of rows that cannot be used.
    """

    train: list[Example]
    held_out: list[Example]
    images: ImageStore
    counts: Mapping[str, int]
    fingerprint: str
    skips_bad_rows: bool = False


def describe_dataset(
    examples: Mapping[str, Sequence[Example]],
    *,
    counts: Mapping[str, int],
    key: str,
    recipe: Mapping[str, Any],
    sources: Sequence[Mapping[str, str | None]],
) -> Manifest:
    """Return what a data set of these parts will say of itself."""
    files = _described(examples)
    return Manifest(
        key=key, recipe=recipe, sources=tuple(sources), counts=counts, files=files, fingerprint=_hash(files)
    )


def write_dataset(folder: Path, examples: Mapping[str, Sequence[Example]], manifest: Manifest) -> None:
    """Write the examples of each part, then the manifest; the images are in `folder/images` already."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for part in PARTS:
        with (
            atomic_path(folder / f"{part}.jsonl") as temporary,
            temporary.open("w", encoding="utf-8") as handle,
        ):
            handle.writelines(_lines(examples[part]))
    write_state(folder / MANIFEST, manifest)


def fingerprint_of(examples: Mapping[str, Sequence[Example]]) -> str:
    """Return the fingerprint that a data set of these parts has."""
    return _hash(_described(examples))


def _lines(examples: Iterable[Example]) -> Iterator[str]:
    return (json.dumps(example_to_json(example), ensure_ascii=False) + "\n" for example in examples)


def _described(examples: Mapping[str, Sequence[Example]]) -> dict[str, DataFile]:
    return {f"{part}.jsonl": _data_file(examples[part]) for part in PARTS}


def _data_file(examples: Sequence[Example]) -> DataFile:
    digest = hashlib.sha256()
    for line in _lines(examples):
        digest.update(line.encode("utf-8"))
    return DataFile(rows=len(examples), sha256=digest.hexdigest())


def _hash(files: Mapping[str, DataFile]) -> str:
    return hash_json({name: asdict(file) for name, file in files.items()})


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a complete data set, None where there is none.

    Raises:
        DataError: it is damaged or of another version of the toolkit.
    """
    return find_state(Manifest, folder / MANIFEST, remedy=_remedy(folder))


def _remedy(folder: Path) -> str:
    return f"delete {folder} and prepare the data again"


def open_dataset(folder: Path) -> Dataset:
    """Return a prepared data set.

    Raises:
        DataError: there is none, or a file is missing or no longer what was written.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise DataError(f"{folder}: no prepared data (no {MANIFEST}); prepare a recipe into it first")
    train, held_out = (read_part(folder, part, manifest) for part in PARTS)
    images = ImageStore(folder / "images")
    missing = sorted(image for image in used_images(train + held_out) if image not in images)
    if missing:
        raise DataError(
            f"{images.path(missing[0])}: {len(missing)} images are missing; prepare the data again"
        )
    return Dataset(
        train=train,
        held_out=held_out,
        images=images,
        counts=manifest.counts,
        fingerprint=manifest.fingerprint,
        skips_bad_rows=manifest.recipe["on_bad_row"] == "skip",
    )


def require_intact(folder: Path, manifest: Manifest) -> None:
    """Compare the files of a data set with their checksums; DataError for one that differs."""
    for part in PARTS:
        _verified(folder, part, manifest)


def _verified(folder: Path, part: str, manifest: Manifest) -> Path:
    path = folder / f"{part}.jsonl"
    if not path.is_file():
        raise DataError(f"{path}: missing; prepare the data again")
    if path.name not in manifest.files or sha256_file(path) != manifest.files[path.name].sha256:
        raise damaged(path, "changed after it was written", remedy=_remedy(folder))
    return path


def used_images(examples: Iterable[Example]) -> set[str]:
    return {image for example in examples for image in example.images}


def read_part(folder: Path, part: str, manifest: Manifest) -> list[Example]:
    """Return the examples of a part; DataError where its file is missing or not what was written."""
    path = _verified(folder, part, manifest)
    with path.open(encoding="utf-8") as handle:
        return [example_from_json(json.loads(line)) for line in handle]
