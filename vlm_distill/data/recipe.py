"""Data recipes: sources, prompts, filters, mixture and split; and preparing one.

A prepared recipe is a folder (dataset.py). Responses to its examples are in store.py.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from vlm_distill.config import Record, apply_overrides, decode, find_yaml, read_yaml
from vlm_distill.data.bad_rows import OnBadRow, RowError
from vlm_distill.data.dataset import (
    Dataset,
    describe_dataset,
    fingerprint_of,
    open_dataset,
    read_manifest,
    require_intact,
    used_images,
    write_dataset,
)
from vlm_distill.data.examples import RecipeSource, read_examples
from vlm_distill.data.images import ImageStore
from vlm_distill.data.mixture import mix
from vlm_distill.data.split import Split, split_examples
from vlm_distill.errors import DataError
from vlm_distill.files import hash_json
from vlm_distill.progress import Log, silent
from vlm_distill.records import Example

# Overrides change a recipe and what `data.path` makes one of.
_WAY_OUT = "with data.overrides=[on_bad_row=skip] rows that cannot be used are left out and counted"
# Raised where the same recipe and sources make other examples than before.
KEY_VERSION = 1


class Recipe(Record):
    """What training data is made of. Order of work: filters, limit, duplicates, mixture, split."""

    name: str
    version: int = 1
    sources: Annotated[list[RecipeSource], Field(min_length=1)]
    deduplicate: bool = Field(
        default=True, description="keep the first of several examples with the same messages and images"
    )
    seed: int = Field(default=0, description="of the draw in a weighted mixture")
    split: Split = Split()
    on_bad_row: OnBadRow = Field(
        default="stop", description="skip: rows that cannot be used are left out and counted by reason"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        names = [entry.source.label for entry in self.sources]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"two sources are called {twice[0]!r}; give each a source.name")
        if len({entry.weight is None for entry in self.sources}) > 1:
            raise ValueError("expected a weight for every source or for none")
        return self


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in a file, or the shipped one of that name, with `dotted.key=value` overrides.

    Raises:
        ConfigError: no such recipe, or it does not decode.
    """
    path = find_yaml(name, folder="data_recipes")
    return decode(Recipe, apply_overrides(read_yaml(path), overrides), where=str(path))


def fingerprint_now(recipe: Recipe, folder: Path) -> str:
    """Return the fingerprint that the data in `folder` have after `prepare`; nothing is written.

    Sources are read whole where their state, or what is in the folder, is not as it was.

    Raises:
        DataError: as `prepare`.
    """
    manifest = read_manifest(folder)
    if manifest is not None and manifest.key == _key(recipe):
        with suppress(DataError):
            require_intact(folder, manifest)
            return manifest.fingerprint
    return fingerprint_of(_collect(recipe, ImageStore(folder / "images", is_kept=False), log=silent)[0])


def _key(recipe: Recipe) -> str:
    states = [entry.source.state() for entry in recipe.sources]
    return hash_json([KEY_VERSION, recipe.model_dump(mode="json"), states])


def prepare(recipe: Recipe, folder: Path, log: Log = print) -> Dataset:
    """Write the examples and images of a recipe below `folder` and return them, or what is there already.

    It is there when recipe and sources (their `state`) are unchanged and no file was changed.

    Raises:
        DataError: a source is missing or wrong, or no example is left to train on.
    """
    key = _key(recipe)
    before = read_manifest(folder)
    if before is not None and before.key == key:
        try:
            dataset = open_dataset(folder)
        except DataError as error:
            log(f"{error} (prepared anew)")
        else:
            log(f"{recipe.name}: already prepared in {folder}")
            return dataset
    examples, counts = _collect(recipe, ImageStore(folder / "images"), log=log)
    # What a reader of the folder is told of the sources, who may not have the package that a source is from.
    sources = [{"text": one.source.describe(), "hub_id": one.source.hub_id} for one in recipe.sources]
    settings = recipe.model_dump(mode="json")
    manifest = describe_dataset(examples, counts=dict(counts), key=key, recipe=settings, sources=sources)
    log(f"{recipe.name}: {counts_text(counts)}")
    if before is not None and replace(before, key=key) == manifest:
        with suppress(DataError):
            dataset = open_dataset(folder)
            # A run that is refused later has changed nothing.
            log(f"{recipe.name}: its sources are other files of the same content; {folder} stays as it is")
            return dataset
    write_dataset(folder, examples, manifest)
    return open_dataset(folder)


def counts_text(counts: Counter[str] | dict[str, int]) -> str:
    """Return counts in one line."""
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _collect(
    recipe: Recipe, images: ImageStore, *, log: Log
) -> tuple[dict[str, list[Example]], Counter[str]]:
    """Return the examples of each part, and what became of the rows."""
    groups, counts = _read_sources(recipe, images, log=log)
    if recipe.deduplicate:
        _drop_duplicates(groups, counts)
    weights = {entry.source.label: entry.weight for entry in recipe.sources if entry.weight is not None}
    mixed = mix(groups, weights or None, seed=recipe.seed)
    counts["left_out_by_mixture"] = sum(map(len, groups.values())) - len(mixed)
    train, held_out = split_examples(mixed, recipe.split)
    counts.update(train=len(train), held_out=len(held_out))
    counts.update(train_images=len(used_images(train)), held_out_images=len(used_images(held_out)))
    if not train:
        remedy = f"; hold less out than {recipe.split.held_out:g} (split.held_out)" if held_out else ""
        raise DataError(
            f"recipe {recipe.name}: no example is left to train on: {counts_text(counts)}{remedy}"
        )
    if recipe.split.held_out and not held_out:
        log(f"{recipe.name}: nothing is held out, for {len(train)} examples are few; raise split.held_out")
    return {"train": train, "held_out": held_out}, counts


def _read_sources(
    recipe: Recipe, images: ImageStore, *, log: Log
) -> tuple[dict[str, list[Example]], Counter[str]]:
    groups: dict[str, list[Example]] = {}
    counts: Counter[str] = Counter()
    owners: dict[str, str] = {}
    for entry in recipe.sources:
        name = entry.source.label
        try:
            groups[name], found = read_examples(
                entry, images, log=log, on_bad_row=recipe.on_bad_row, owners=owners
            )
        except RowError as error:
            raise DataError(f"{error} ({_WAY_OUT})") from None
        counts.update(found)
        if len(recipe.sources) > 1:
            counts.update({f"{name}/{reason}": count for reason, count in found.items()})
    return groups, counts


def _drop_duplicates(groups: dict[str, list[Example]], counts: Counter[str]) -> None:
    seen: set[str] = set()
    counts["duplicates"] = 0
    for name, examples in groups.items():
        kept = []
        for example in examples:
            prompt = example.prompt_hash()
            if prompt not in seen:
                seen.add(prompt)
                kept.append(example)
        counts["duplicates"] += len(examples) - len(kept)
        groups[name] = kept
