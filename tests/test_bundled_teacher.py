"""The embedded teacher answers real questions about real pictures that it was not trained on."""

import importlib.util
from contextlib import nullcontext

import pytest

from vlm_distill.data.images import ImageStore
from vlm_distill.evaluation.harness import Answerer, evaluate_task
from vlm_distill.evaluation.selection import Selection
from vlm_distill.evaluation.task import load_task
from vlm_distill.generation.engine import Identity
from vlm_distill.generation.transformers_engine import TransformersEngine
from vlm_distill.models.load import load_model

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("easy_vqa") is None, reason="needs pip install 'vlm-distill[demo]'"
)


def test_the_bundled_teacher_names_shapes_and_colours_of_test_pictures(tmp_path) -> None:
    images = ImageStore(tmp_path / "images")
    loaded = load_model("bundled:easy_vqa_teacher")
    engine = TransformersEngine(
        loaded=loaded,
        load_images=lambda example: [images.load(image) for image in example.images],
        batch_size=64,
    )
    identity = Identity(fingerprint=loaded.fingerprint, stop_ids=loaded.stop_ids)
    result = evaluate_task(
        load_task("easy_vqa"),
        Answerer(identity=identity, open_engine=lambda: nullcontext(engine)),
        selection=Selection(limit=150),
        folder=tmp_path / "eval",
        images=images,
        log=print,
    )
    scores = result.metrics["exact_match"]
    assert scores["all"].mean > 0.85
    assert scores["open"].mean > 0.95
    assert result.counts["truncated"] == result.counts["no_response"] == 0
