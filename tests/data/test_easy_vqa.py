"""Facts about the easy-VQA package that the shipped recipe and its evaluation rely on."""

import importlib.util
from pathlib import Path

import pytest

from vlm_distill.data.dataset import used_images
from vlm_distill.data.recipe import load_recipe, prepare
from vlm_distill.files import sha256_file

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("easy_vqa") is None, reason="needs vlm-distill[demo]"
)


def image_hashes(split: str) -> list[str]:
    spec = importlib.util.find_spec("easy_vqa")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "data" / split / "images"
    return [sha256_file(path) for path in folder.glob("*.png")]


def test_no_image_stands_twice_and_training_and_test_images_are_disjoint() -> None:
    train, test = image_hashes("train"), image_hashes("test")
    assert (len(train), len(test), len(set(train) | set(test))) == (4000, 1000, 5000)


def test_the_shipped_recipe_asks_the_questions_of_the_package(tmp_path: Path) -> None:
    data = prepare(load_recipe("easy_vqa", ["sources.0.limit=300"]), tmp_path, lambda line: None)
    examples = {example.id: example for example in data.train + data.held_out}
    first = examples["easy_vqa_train-0"]
    assert first.messages[0].as_chat() == {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "what is the blue shape?"}],
    }
    assert first.references == ("rectangle",)
    assert data.images.load(first.images[0]).size == (64, 64)
    assert not used_images(data.train) & used_images(data.held_out)
    assert len(examples) == 300
