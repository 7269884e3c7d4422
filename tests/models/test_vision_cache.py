"""Features of a frozen tower: equal to the tower's own, computed once per image, kept within bounds."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.prompts import IMAGES, PROMPTS, RESPONSES, responses_of
from tests.tiny import fresh, picture, tiny_llava, tiny_text_model
from tests.tiny_qwen import tiny_qwen
from vlm_distill.adapters.adapter import FEATURES, PIXELS, LoadedModel
from vlm_distill.conformance.probes import probe_of
from vlm_distill.conformance.training import vision_cache
from vlm_distill.errors import AdapterError, DataError
from vlm_distill.forward import prefix_shared_hidden, unshared_hidden
from vlm_distill.models.feature_store import FeatureStore, VisionCacheConfig
from vlm_distill.models.load import load_model
from vlm_distill.models.save import save_model
from vlm_distill.models.vision_cache import (
    tower_key,
    why_not_cached,
    with_vision_cache,
    without_vision_cache,
)
from vlm_distill.students.build import BuildConfig, build_llava

SELECTIONS = {
    "as LLaVA-1.5": {"vision_feature_layer": -2},
    "from the front": {"vision_feature_layer": 1},
    "with the class token": {"vision_feature_layer": -2, "vision_feature_select_strategy": "full"},
}


def store(folder: Path | None = None, **bounds: float) -> FeatureStore:
    return FeatureStore(VisionCacheConfig(**bounds), folder=folder, log=pytest.fail)


def count_tower_passes(loaded: LoadedModel) -> list[int]:
    """Return a list to which every forward of the tower appends its number of images."""
    passes: list[int] = []
    tower = loaded.model.base_model.vision_tower
    tower.register_forward_hook(lambda _, args, output: passes.append(len(args[0])))
    return passes


def with_frozen_tower(loaded: LoadedModel) -> LoadedModel:
    """Return a copy in training mode with a frozen tower."""
    copied = fresh(loaded)
    copied.model.train()
    copied.model.base_model.vision_tower.requires_grad_(False)
    return copied


def loss_and_gradients(
    loaded: LoadedModel, forward: Callable[..., torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    hidden = forward(loaded, loaded.encode(PROMPTS, IMAGES), responses_of(RESPONSES))
    loss = (hidden * torch.linspace(1, 2, hidden.numel()).view_as(hidden)).square().sum()
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in loaded.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS)
def test_logits_and_gradients_equal_those_without_the_cache(selection) -> None:
    found = vision_cache(probe_of(tiny_llava(**selection)))
    assert found.outcome == "passed", found.line


def test_the_tower_runs_once_per_image_whatever_asks_for_it() -> None:
    loaded = with_frozen_tower(tiny_llava())
    passes = count_tower_passes(loaded)
    cached = with_vision_cache(loaded, store())
    for forward in (unshared_hidden, prefix_shared_hidden, unshared_hidden):
        forward(cached, cached.encode(PROMPTS, IMAGES), responses_of(RESPONSES))
    cached.encode(PROMPTS[:1], [[picture("green")]])
    assert sum(passes) == 3
    cached.encode(PROMPTS[:1], [[picture("yellow")]])
    assert sum(passes) == 4


def test_student_and_teacher_with_one_tower_share_its_passes(tmp_path: Path) -> None:
    teacher = tiny_llava(1, hidden_size=32)
    config = {
        "vision": {"from": "teacher"},
        "language": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        },
        "vision_feature_layer": -1,
    }
    built = build_llava(BuildConfig.model_validate(config), teacher=teacher, texts=[], seed=0)
    # As a run has it: saved and loaded again.
    save_model(built, tmp_path / "student")
    save_model(teacher, tmp_path / "teacher")
    cache = store()
    models = [with_vision_cache(load_model(str(tmp_path / name)), cache) for name in ("teacher", "student")]
    passes = [count_tower_passes(model) for model in models]
    encoded = [model.encode(PROMPTS, IMAGES) for model in models]
    assert [sum(one) for one in passes] == [3, 0]
    assert torch.equal(encoded[0].extras[FEATURES], encoded[1].extras[FEATURES])
    assert (cache.num_computed, cache.num_found) == (3, 3)


def test_another_tower_layer_or_image_has_another_key() -> None:
    loaded = tiny_llava()
    keys = [tower_key(loaded), tower_key(tiny_llava(1)), tower_key(tiny_llava(vision_feature_layer=-2))]
    learned = with_frozen_tower(loaded)
    with torch.no_grad():
        next(learned.model.base_model.vision_tower.parameters()).add_(1e-6)
    keys.append(tower_key(learned))
    assert len(set(keys)) == 4
    assert tower_key(with_frozen_tower(loaded)) == keys[0]


def test_features_found_in_inference_mode_serve_a_later_backward_pass() -> None:
    cached = with_vision_cache(with_frozen_tower(tiny_llava()), store())
    with torch.inference_mode():
        cached.encode(PROMPTS, IMAGES)
    _, gradients = loss_and_gradients(cached, unshared_hidden)
    assert gradients["model.multi_modal_projector.linear_1.weight"].abs().max() > 0


def test_features_have_the_dtype_of_the_model() -> None:
    loaded = replace(tiny_llava(), model=copy.deepcopy(tiny_llava().model).to(torch.bfloat16))
    cached = with_vision_cache(loaded, store())
    prompts = cached.encode(PROMPTS, IMAGES)
    assert prompts.extras[FEATURES].dtype == torch.bfloat16
    assert PIXELS not in prompts.extras
    with torch.no_grad():
        found = unshared_hidden(cached, prompts, responses_of(RESPONSES))
        expected = unshared_hidden(loaded, loaded.encode(PROMPTS, IMAGES), responses_of(RESPONSES))
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.05)


def test_what_is_computed_does_not_depend_on_what_was_there() -> None:
    first, second = (with_vision_cache(tiny_llava(), store()) for _ in range(2))
    second.encode(PROMPTS[:1], [[picture("blue")]])
    one, other = (model.encode(PROMPTS, IMAGES).extras[FEATURES] for model in (first, second))
    assert torch.equal(one, other)


def test_the_mode_of_the_tower_is_left_as_it_was() -> None:
    for mode in (True, False):
        loaded = with_frozen_tower(tiny_llava())
        loaded.model.train(mode)
        with_vision_cache(loaded, store()).encode(PROMPTS, IMAGES)
        assert loaded.model.base_model.vision_tower.training is mode


def test_prompts_without_images_pass_through() -> None:
    cached = with_vision_cache(tiny_llava(), store())
    prompts = cached.encode(PROMPTS[1:2], [[]])
    assert FEATURES not in prompts.extras
    assert without_vision_cache(cached).vision_cache is None


def test_families_without_one_row_per_image_are_left_as_they_are_and_say_why() -> None:
    text, qwen = tiny_text_model(), tiny_qwen()
    assert "text only" in why_not_cached(text)
    assert "'image_text'" in why_not_cached(qwen)
    assert why_not_cached(tiny_llava()) == ""
    assert with_vision_cache(qwen, store()) is qwen


def test_a_tower_that_reads_images_of_any_size_runs_in_every_forward() -> None:
    loaded = fresh(tiny_llava())
    loaded.model.config.vision_config.model_type = "pixtral"
    assert "images of any size" in why_not_cached(loaded)
    assert with_vision_cache(loaded, store()) is loaded


def test_a_processor_that_counts_other_image_tokens_is_refused() -> None:
    loaded = tiny_llava(vision_feature_select_strategy="full")
    wrong = replace(loaded, processor=tiny_llava().processor)
    with pytest.raises(AdapterError, match="12 image tokens for 3 images of 5 features"):
        with_vision_cache(wrong, store()).encode(PROMPTS, IMAGES)


def filled(cache: FeatureStore, count: int) -> None:
    for number in range(count):
        cache.put(str(number), torch.full((4,), float(number)))  # 16 bytes


def test_the_least_recently_used_leaves_memory_first() -> None:
    cache = store(memory_gib=48 / 2**30)
    filled(cache, 3)
    assert cache.get("0") is not None
    filled(cache, 4)
    assert [cache.get(key) is not None for key in "0123"] == [True, False, True, True]


def test_what_was_flushed_is_found_by_another_process(tmp_path: Path) -> None:
    first = store(tmp_path)
    filled(first, 3)
    assert store(tmp_path).get("2") is None
    first.flush()
    found = store(tmp_path, memory_gib=0)
    assert torch.equal(found.get("2"), torch.full((4,), 2.0))
    found.put("2", torch.zeros(4))
    found.flush()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_share_is_said_once_and_nothing_more_is_written(tmp_path: Path) -> None:
    lines: list[str] = []
    cache = FeatureStore(VisionCacheConfig(disk_gib=300 / 2**30), folder=tmp_path, log=lines.append)
    filled(cache, 2)
    cache.flush()
    assert (len(list(tmp_path.iterdir())), lines) == (1, [])
    filled(cache, 4)
    cache.flush()
    filled(cache, 6)
    cache.flush()
    assert len(list(tmp_path.iterdir())) == 1
    assert len(lines) == 1
    assert "raise vision_cache.disk_gib" in lines[0]
    assert cache.get("5") is not None


def test_what_another_process_wrote_is_neither_computed_nor_written_again(tmp_path: Path) -> None:
    first, second = store(tmp_path), store(tmp_path, memory_gib=0)
    filled(first, 3)
    first.flush()
    second.put("1", torch.full((4,), 1.0))
    second.flush()
    assert len(list(tmp_path.iterdir())) == 1
    assert torch.equal(second.get("2"), torch.full((4,), 2.0))


def test_a_disk_that_fails_is_said_and_stops_nothing(tmp_path: Path) -> None:
    lines: list[str] = []
    cache = FeatureStore(VisionCacheConfig(), folder=tmp_path / "a file" / "features", log=lines.append)
    (tmp_path / "a file").write_text("in the way")
    filled(cache, 2)
    cache.flush()
    assert "further features stay in memory only" in lines[0]
    assert torch.equal(cache.get("1"), torch.full((4,), 1.0))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_what_is_read_keeps_no_mapping_of_its_file(tmp_path: Path) -> None:
    first = store(tmp_path)
    filled(first, 3)
    first.flush()
    found = store(tmp_path).get("2")
    assert found.untyped_storage().nbytes() == found.nbytes
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    cache = store(tmp_path)
    filled(cache, 2)
    cache.flush()
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:20])
    elif damage == "flipped":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        save_file({"1": torch.zeros(4)}, path)
    with pytest.raises(DataError, match=r"safetensors: not the features that were written; delete"):
        store(tmp_path).get("1")
