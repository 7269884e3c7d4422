"""The teacher cache: what is computed once, and that training from it is training with a live teacher."""

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.stages import KilledError, assert_same, config, load_images, make_items, make_stage, weights
from tests.tiny import fresh, tiny_llava, tiny_text_model
from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.alignment.alignment import ALL_IDS, Alignment
from vlm_distill.batches import pad_responses
from vlm_distill.errors import AdapterError, DataError
from vlm_distill.forward import response_hidden
from vlm_distill.losses import DPO, KD, TAID, DistiLLM2, IdList, IdRange, Rows, forward_kl
from vlm_distill.models.load import load_model
from vlm_distill.models.output_layer import light_model
from vlm_distill.models.save import save_model
from vlm_distill.records import Example
from vlm_distill.stopping import Interrupted, handled
from vlm_distill.teacher_cache import fill
from vlm_distill.teacher_cache.fill import CachePlan, cached_by_author, fill_cache
from vlm_distill.teacher_cache.tiers import HIDDEN, CacheConfig
from vlm_distill.training.train import train

NAMES = {"teacher": "teacher", "student": "student_round_1"}


class Teacher:
    """A teacher on disk that counts how often its body is loaded and which prompts it forwards."""

    def __init__(self, folder: Path, *, is_text: bool = False, dtype: str = "float32") -> None:
        whole = tiny_text_model(1, hidden_size=32) if is_text else tiny_llava(1, hidden_size=32)
        save_model(whole, folder)
        self.path, self.options = str(folder), LoadOptions(dtype=dtype)
        self.light = light_model(self.path, self.options)
        self.num_loads = 0
        self.forwarded: list[str] = []

    def body(self) -> LoadedModel:
        self.num_loads += 1
        loaded = load_model(self.path, self.options)
        plain = loaded.adapter.encode

        def encode(processor: object, examples: Sequence[Example], images: object) -> object:
            self.forwarded += [one.id for one in examples]
            return plain(processor, examples, images)

        return replace(loaded, adapter=replace(loaded.adapter, encode=encode))

    def plan(self, folder: Path, **settings: object) -> CachePlan:
        return CachePlan(
            config=CacheConfig(**settings),
            folder=folder,
            light=self.light,
            body=self.body,
            alignment=ALL_IDS,
            student_width=len(self.light.head.weight),
            load_images=load_images,
            log=print,
        )


def trained(
    folder: Path,
    teacher: Teacher,
    objective: object,
    *,
    cache: CacheConfig | None = None,
    is_double: bool = False,
    size: int = 2,
    alignment: Alignment = ALL_IDS,
) -> dict[str, torch.Tensor]:
    """Return the student's weights after training, from a cache or with the live teacher.

    In float64 rounding cannot hide a difference: AdamW makes of a gradient near 0 a step of full size.
    """
    is_text = "vision" not in teacher.light.adapter.parts
    items = make_items(num_images=0 if is_text else 1)
    student = fresh(tiny_text_model(0) if is_text else tiny_llava(0))
    live = load_model(teacher.path, teacher.options)
    plan = replace(
        teacher.plan(folder / "cache", **(cache.model_dump() if cache else {})), alignment=alignment
    )
    if is_double:
        student.model.double(), live.model.double()
        light = light_model(teacher.path, teacher.options)
        light.model.double()
        plan = replace(plan, light=light, body=lambda: live)
    stage = make_stage(
        folder,
        student=student,
        teacher=plan.light if cache else live,
        items=items,
        alignment=alignment,
        objective=objective.build(),
        cache=cached_by_author(plan, items, names=NAMES) if cache else None,
    )
    train(config(batch_size=2 * size, micro_batch_size=size), stage, log=print)
    return weights(stage.student)


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("is_text", [False, True], ids=["llava", "text"])
@pytest.mark.parametrize(
    "objective", [DistiLLM2(), KD(), TAID(), DPO(reference="teacher")], ids=lambda one: one.kind
)
def test_training_from_hidden_states_is_training_with_the_live_teacher(
    tmp_path: Path, is_text: bool, objective: object
) -> None:
    teacher = Teacher(tmp_path / "teacher", is_text=is_text)
    live = trained(tmp_path / "live", teacher, objective, is_double=True)
    cached = trained(tmp_path / "cached", teacher, objective, is_double=True, cache=CacheConfig())
    assert_near(cached, live, 1e-8)


def test_in_float32_the_weights_are_bit_equal_where_the_teacher_sees_batches_of_one_shape(
    tmp_path: Path,
) -> None:
    teacher = Teacher(tmp_path / "teacher")
    live = trained(tmp_path / "live", teacher, KD(), size=6)
    cached = trained(tmp_path / "cached", teacher, KD(), size=6, cache=CacheConfig())
    assert_same(cached, live)


def test_a_bfloat16_teacher_is_cached_in_its_own_numbers(tmp_path: Path) -> None:
    teacher, items = Teacher(tmp_path / "teacher", dtype="bfloat16"), make_items()
    reader = cached_by_author(teacher.plan(tmp_path / "cache"), items, names=NAMES)
    found = reader.read([one.id for item in items for one in item.responses])[HIDDEN]
    assert found.dtype == torch.bfloat16
    live = trained(tmp_path / "live", teacher, KD(), size=6)
    cached = trained(tmp_path / "cached", teacher, KD(), size=6, cache=CacheConfig())
    assert_same(cached, live)


@pytest.mark.parametrize("tier", ["hidden", "top_k", "sampled"])
def test_a_teacher_with_other_ids_for_the_tokens_is_cached_as_the_live_one_is_read(
    tmp_path: Path, tier: str
) -> None:
    teacher, cache = Teacher(tmp_path / "teacher"), CacheConfig(tier=tier, k=10_000)
    others = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    alignment = Alignment(route="permuted", student=IdRange(), teacher=IdList(ids=others))
    objective = DPO(reference="teacher")
    live = trained(tmp_path / "live", teacher, objective, is_double=True, alignment=alignment)
    cached = trained(
        tmp_path / "cached", teacher, objective, is_double=True, cache=cache, alignment=alignment
    )
    assert_near(cached, live, 1e-5)


def test_the_key_names_the_ids_of_the_teacher_over_which_probabilities_are_normalised(
    tmp_path: Path,
) -> None:
    plan = Teacher(tmp_path / "teacher").plan(tmp_path / "cache", tier="sampled")
    assert plan.key["vocabulary"] == [0, 300]
    moved = Alignment(route="moved", student=IdRange(start=10, stop=20), teacher=IdRange(stop=10))
    assert replace(plan, alignment=moved).key["vocabulary"] == [0, 10, 10, 20]


def test_top_k_of_nearly_every_token_is_training_with_the_live_teacher(tmp_path: Path) -> None:
    teacher, cache = Teacher(tmp_path / "teacher"), CacheConfig(tier="top_k", k=10_000)
    live = trained(tmp_path / "live", teacher, DistiLLM2(), is_double=True)
    cached = trained(tmp_path / "cached", teacher, DistiLLM2(), is_double=True, cache=cache)
    start = weights(tiny_llava(0))
    # Log-probabilities are stored in float32, and AdamW makes much of that where gradients are near 0.
    off = sum((cached[name] - live[name]).square().sum() for name in live)
    assert off < 1e-6 * sum((start[name] - live[name]).square().sum() for name in live)


def test_pairs_train_on_the_log_probabilities_of_the_responses_alone(tmp_path: Path) -> None:
    teacher, objective = Teacher(tmp_path / "teacher"), DPO(reference="teacher")
    live = trained(tmp_path / "live", teacher, objective, is_double=True)
    cached = trained(
        tmp_path / "cached", teacher, objective, is_double=True, cache=CacheConfig(tier="sampled")
    )
    assert_near(cached, live, 1e-5)


def test_hidden_states_are_stored_exactly_and_in_bfloat16_with_a_small_error(tmp_path: Path) -> None:
    teacher, items = Teacher(tmp_path / "teacher"), make_items()
    body = teacher.body()
    ids = [one.id for item in items for one in item.responses]
    examples = [item.example for item in items]
    prompts = body.encode(examples, [load_images(one) for one in examples])
    responses = pad_responses([item.responses for item in items])
    with torch.no_grad():
        live = response_hidden(body, prompts, responses)
    logits = {}
    for dtype in ("teacher", "bfloat16"):
        reader = cached_by_author(teacher.plan(tmp_path / dtype, dtype=dtype), items, names=NAMES)
        found = reader.read(ids)[HIDDEN].float()
        rows = Rows(hidden=found, head=body.head)
        logits[dtype] = rows.logits(rows.project(slice(None))).detach()
        if dtype == "teacher":
            torch.testing.assert_close(found, live, rtol=0, atol=1e-5)
    error = forward_kl(logits["bfloat16"], logits["teacher"])
    assert 0 < error.mean() < 1e-3
    assert error.max() < 1e-3


def test_what_is_cached_is_not_computed_again_and_the_teacher_not_loaded(tmp_path: Path) -> None:
    teacher, items = Teacher(tmp_path / "teacher"), make_items()
    fill_cache(teacher.plan(tmp_path / "cache"), items[:4], name="x")
    assert (teacher.num_loads, len(teacher.forwarded)) == (1, 4)
    fill_cache(teacher.plan(tmp_path / "cache"), items[:4], name="x")
    assert (teacher.num_loads, len(teacher.forwarded)) == (1, 4)
    fill_cache(teacher.plan(tmp_path / "cache"), items, name="x")
    assert sorted(teacher.forwarded) == sorted(item.example.id for item in items)


def test_a_kill_loses_no_row_that_was_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill, "SHARD_SECONDS", 0.0)
    teacher, items = Teacher(tmp_path / "teacher"), make_items()
    whole = fill_cache(teacher.plan(tmp_path / "whole", batch_size=2), items, name="x")
    teacher.forwarded.clear()

    def load_images_until_killed(one: Example) -> list[object]:
        if len(set(teacher.forwarded)) == 4:
            raise KilledError
        return load_images(one)

    cut = replace(teacher.plan(tmp_path / "cut", batch_size=2), load_images=load_images_until_killed)
    with pytest.raises(KilledError):
        fill_cache(cut, items, name="x")
    store = fill_cache(teacher.plan(tmp_path / "cut", batch_size=2), items, name="x")
    assert sorted(teacher.forwarded) == sorted(item.example.id for item in items)
    assert store.places.keys() == whole.places.keys()
    for ours, theirs in zip(
        sorted(tmp_path.glob("cut/x/rank_0/*.safetensors")),
        sorted(tmp_path.glob("whole/x/rank_0/*.safetensors")),
        strict=True,
    ):
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_signal_ends_a_fill_after_its_batch_and_the_rows_are_kept(tmp_path: Path) -> None:
    teacher, items = Teacher(tmp_path / "teacher"), make_items()

    def load_images_and_signal(one: Example) -> list[object]:
        if len(set(teacher.forwarded)) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return load_images(one)

    plan = teacher.plan(tmp_path / "cache", batch_size=2)
    with (
        handled(),
        pytest.raises(Interrupted, match="x cache: stopped after 8 more responses, which"),
    ):
        fill_cache(replace(plan, load_images=load_images_and_signal), items, name="x")
    store = fill_cache(plan, items, name="x")
    assert sorted(teacher.forwarded) == sorted(item.example.id for item in items)
    whole = fill_cache(teacher.plan(tmp_path / "whole"), items, name="x")
    assert store.places.keys() == whole.places.keys()


def test_responses_that_changed_are_cached_anew_and_said(tmp_path: Path) -> None:
    teacher, items = Teacher(tmp_path / "teacher"), make_items()
    fill_cache(teacher.plan(tmp_path / "cache"), items, name="x")
    moved = replace(items[2], example=replace(items[2].example, images=("another",)))
    lines: list[str] = []
    teacher.forwarded.clear()
    plan = replace(teacher.plan(tmp_path / "cache"), log=lines.append)
    store = fill_cache(plan, [*items[:2], moved], name="x")
    assert "prompt, images or token ids of 2 responses changed" in lines[0]
    assert sorted(teacher.forwarded) == ["e0", "e1", "e2"]
    assert len(store.places) == sum(len(item.responses) for item in items[:3])


def test_a_teacher_without_memory_says_what_to_lower(tmp_path: Path) -> None:
    teacher = Teacher(tmp_path / "teacher")

    def no_memory(_: Example) -> list[object]:
        raise torch.OutOfMemoryError

    plan = replace(teacher.plan(tmp_path / "cache", batch_size=2), load_images=no_memory)
    with pytest.raises(DataError, match=r"with 2 prompts at once; lower cache.batch_size"):
        fill_cache(plan, make_items(), name="x")


def test_changed_teachers_and_settings_are_refused(tmp_path: Path) -> None:
    teacher, items = Teacher(tmp_path / "teacher"), make_items()
    fill_cache(teacher.plan(tmp_path / "cache"), items, name="x")
    with pytest.raises(DataError, match="was computed with another stored dtype"):
        fill_cache(teacher.plan(tmp_path / "cache", dtype="bfloat16"), items, name="x")
    save_model(tiny_llava(2, hidden_size=32), tmp_path / "teacher")
    other = replace(
        teacher.plan(tmp_path / "cache"), light=light_model(str(tmp_path / "teacher"), LoadOptions())
    )
    with pytest.raises(DataError, match="was computed with another teacher"):
        fill_cache(other, items, name="x")
    with pytest.raises(DataError, match="the teacher's files changed during the run"):
        fill_cache(teacher.plan(tmp_path / "new"), items, name="x")


def test_prompts_that_are_encoded_in_another_way_are_refused(tmp_path: Path) -> None:
    teacher, items = Teacher(tmp_path / "teacher", is_text=True), make_items(num_images=0)
    fill_cache(teacher.plan(tmp_path / "cache"), items, name="x")
    teacher.light.tokenizer.chat_template = "{{ messages[0]['content'] }} changed"
    with pytest.raises(DataError, match="the prompt of example 'e0' has other ids"):
        fill_cache(teacher.plan(tmp_path / "cache"), items, name="x")


def test_a_teacher_that_is_not_finite_or_has_another_head_is_refused(tmp_path: Path) -> None:
    teacher, items = Teacher(tmp_path / "teacher"), make_items()
    broken = teacher.body()
    with torch.no_grad():
        broken.model.model.language_model.norm.weight[0] = float("nan")
    with pytest.raises(DataError, match=r"hidden states are not finite in the batch of example 'e\d'"):
        fill_cache(replace(teacher.plan(tmp_path / "cache"), body=lambda: broken), items, name="x")
    other = teacher.body()
    with torch.no_grad():
        other.model.lm_head.weight[0] += 1
    with pytest.raises(AdapterError, match="not the one that the loaded model has; train without `cache`"):
        fill_cache(replace(teacher.plan(tmp_path / "cache"), body=lambda: other), items, name="x")


def test_a_full_disk_is_named_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Teacher(tmp_path / "teacher")

    class Usage:
        free = 10

    monkeypatch.setattr(fill.shutil, "disk_usage", lambda folder: Usage)
    with pytest.raises(DataError, match=r"needs about .* GiB, and 0.0 GiB are free"):
        fill_cache(teacher.plan(tmp_path / "cache"), make_items(), name="x")
    assert teacher.num_loads == 0
