"""A prepared data set on disk: two JSONL files of examples, a folder of images, a manifest written last."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_distill.data.examples import example_from_json, example_to_json
from vlm_distill.data.images import ImageStore
from vlm_distill.errors import DataError
from vlm_distill.files import atomic_path, hash_json, read_json, sha256_file, write_json
from vlm_distill.records import Example

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PARTS = ("train", "held_out")


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Examples to train on and examples held out, with their images.

    `counts` say what became of every row of every source; `fingerprint` is the hash of all examples in both
    parts.
    """

    train: list[Example]
    held_out: list[Example]
    images: ImageStore
    counts: dict[str, int]
    fingerprint: str


def write_dataset(
    folder: Path,
    *,
    train: Sequence[Example],
    held_out: Sequence[Example],
    counts: dict[str, int],
    key: str,
    facts: dict[str, Any],
) -> None:
    """Write examples, then the manifest with `facts`; the images are in `folder/images` already."""
    (folder / MANIFEST).unlink(missing_ok=True)
    files = {}
    for part, examples in zip(PARTS, (train, held_out), strict=True):
        with (
            atomic_path(folder / f"{part}.jsonl") as temporary,
            temporary.open("w", encoding="utf-8") as handle,
        ):
            handle.writelines(
                json.dumps(example_to_json(example), ensure_ascii=False) + "\n" for example in examples
            )
        files[f"{part}.jsonl"] = {"rows": len(examples), "sha256": sha256_file(folder / f"{part}.jsonl")}
    manifest = {
        "format_version": FORMAT_VERSION,
        "key": key,
        **facts,
        "counts": counts,
        "files": files,
        "fingerprint": hash_json(files),
    }
    write_json(folder / MANIFEST, manifest)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a complete data set, None where there is none.

    Raises:
        DataError: it is damaged or of another version of the toolkit.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = read_json(path)
    except ValueError:
        raise DataError(f"{path}: not valid JSON; delete {folder} and prepare the data again") from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path}: expected format version {FORMAT_VERSION}, got {version}; prepare into another folder"
        )
    assert isinstance(manifest, dict)
    return manifest


def open_dataset(folder: Path) -> Dataset:
    """Return a prepared data set.

    Raises:
        DataError: there is none, or a file is missing or no longer what was written.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise DataError(f"{folder}: no prepared data (no {MANIFEST}); prepare a recipe into it first")
    train, held_out = (_read_part(folder / f"{part}.jsonl", manifest["files"]) for part in PARTS)
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
        counts=manifest["counts"],
        fingerprint=manifest["fingerprint"],
    )


def used_images(examples: Iterable[Example]) -> set[str]:
    return {image for example in examples for image in example.images}


def _read_part(path: Path, files: dict[str, Any]) -> list[Example]:
    if not path.is_file():
        raise DataError(f"{path}: missing; prepare the data again")
    if sha256_file(path) != files[path.name]["sha256"]:
        raise DataError(f"{path}: changed after it was written; delete it and prepare the data again")
    with path.open(encoding="utf-8") as handle:
        return [example_from_json(json.loads(line)) for line in handle]
