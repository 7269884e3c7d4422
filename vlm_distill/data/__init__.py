"""Data without tensors: recipes, sources, images, stored responses."""

from vlm_distill.data.columns import Columns
from vlm_distill.data.dataset import Dataset, open_dataset
from vlm_distill.data.examples import OnBadImage, example_from_json, example_to_json, read_examples
from vlm_distill.data.images import ImageStore
from vlm_distill.data.recipe import Recipe, load_recipe, prepare
from vlm_distill.data.rows import Row
from vlm_distill.data.sources import Files, Hub, ImageFolder, PackageData, Source, read_rows
from vlm_distill.data.store import ResponseStore, join

__all__ = [
    "Columns",
    "Dataset",
    "Files",
    "Hub",
    "ImageFolder",
    "ImageStore",
    "OnBadImage",
    "PackageData",
    "Recipe",
    "ResponseStore",
    "Row",
    "Source",
    "example_from_json",
    "example_to_json",
    "join",
    "load_recipe",
    "open_dataset",
    "prepare",
    "read_examples",
    "read_rows",
]
