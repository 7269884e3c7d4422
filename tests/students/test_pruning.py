from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny import LANGUAGE, TEXTS, VISION, example, picture, tiny_text_model
from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.adapters.causal_lm import CAUSAL_LM
from vlm_distill.alignment.pair import pair_report
from vlm_distill.config import decode
from vlm_distill.errors import AdapterError, ConfigError
from vlm_distill.losses import IdRange
from vlm_distill.models.fingerprint import weights_fingerprint
from vlm_distill.models.load import load_model, wrap_model
from vlm_distill.models.save import save_model
from vlm_distill.models.skeleton import SKELETON, load_skeleton
from vlm_distill.students.build import BuildConfig, build_llava
from vlm_distill.students.pruning import ShrinkConfig, chosen_layers, shrink_student

DEEP = {**LANGUAGE, "num_hidden_layers": 4, "num_key_value_heads": 2}


def text_teacher(model_type: str = "llama", **settings: Any) -> LoadedModel:
    """Return a random model of four layers of any family."""
    tokenizer = tiny_text_model().tokenizer
    ids = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    config = AutoConfig.for_model(
        model_type, **{**DEEP, "head_dim": 8, "vocab_size": len(tokenizer), **ids, **settings}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    return wrap_model(CAUSAL_LM, model.eval(), tokenizer, path="deep")


def llava_teacher() -> LoadedModel:
    config = {"vision": VISION, "language": DEEP, "tokenizer": {"train": {}}, "vision_feature_layer": -1}
    return build_llava(BuildConfig.model_validate(config), teacher=None, texts=TEXTS, seed=0)


def logits_of(loaded: LoadedModel) -> torch.Tensor:
    has_images = "vision" in loaded.adapter.parts
    batch = loaded.encode([example("a", "red?", num_images=int(has_images))], [[picture()] * has_images])
    with torch.no_grad():
        return loaded.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, **batch.extras
        ).logits


def shrink(teacher: LoadedModel, layers: Any) -> LoadedModel:
    return shrink_student(ShrinkConfig(layers=layers), teacher=teacher)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(1, [0]), (2, [0, 29]), (3, [0, 15, 29]), (4, [0, 10, 19, 29]), (30, list(range(30))), ((3, 5), [3, 5])],
)
def test_layers_are_spread_evenly_with_the_first_and_the_last(layers: Any, expected: list[int]):
    assert chosen_layers(layers, 30) == expected


@pytest.mark.parametrize("num_layers", [1, 2, 7, 12])
def test_every_possible_number_of_layers_gives_as_many_different_ones(num_layers: int):
    for layers in range(1, num_layers + 1):
        chosen = chosen_layers(layers, num_layers)
        assert chosen == sorted(set(chosen))
        assert len(chosen) == layers
        assert chosen[0] == 0
        assert layers == 1 or chosen[-1] == num_layers - 1


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (31, "expected at most the 30 of the teacher, got 31"),
        ((0, 30), "the teacher has layers 0..29, got 30"),
        ((1, 1), r"different layers in ascending order, got \[1, 1\]"),
        ((2, 1), "ascending order"),
        ((), "ascending order"),
    ],
)
def test_layers_that_cannot_be_kept_are_refused(layers: Any, message: str):
    with pytest.raises(AdapterError, match=f"student.shrink.layers: .*{message}"):
        chosen_layers(layers, 30)


@pytest.mark.parametrize("layers", [0, -1, [-1, 2], "all"])
def test_numbers_that_are_no_layers_are_config_errors(layers: Any):
    with pytest.raises(ConfigError, match="layers"):
        decode(ShrinkConfig, {"layers": layers}, where="run.yaml")


def test_a_student_with_all_layers_is_its_teacher():
    teacher = text_teacher()
    torch.testing.assert_close(logits_of(shrink(teacher, 4)), logits_of(teacher), atol=0, rtol=0)


def test_weights_of_the_kept_layers_and_of_everything_around_them_are_copied():
    teacher = text_teacher(tie_word_embeddings=False)
    student = shrink(teacher, (1, 3))
    theirs, ours = teacher.model.state_dict(), student.model.state_dict()
    for new, old in enumerate((1, 3)):
        pairs = [
            (name, name.replace(f"layers.{new}.", f"layers.{old}."))
            for name in ours
            if f"layers.{new}." in name
        ]
        assert len(pairs) == 9
        assert all(torch.equal(ours[name], theirs[source]) for name, source in pairs)
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert torch.equal(ours[name], theirs[name])


def test_layers_that_are_left_out_are_skipped_by_the_hidden_states():
    teacher = text_teacher()
    student = shrink(teacher, (0, 2))
    layers = teacher.model.model.layers
    teacher.model.model.layers = torch.nn.ModuleList([layers[0], layers[2]])
    # The model runs as many layers as its config says; a cache would look for those that are gone.
    teacher.model.config.num_hidden_layers = 2
    teacher.model.config.use_cache = False
    torch.testing.assert_close(logits_of(student), logits_of(teacher), atol=0, rtol=0)


def test_training_the_student_does_not_change_the_teacher():
    teacher = text_teacher()
    student = shrink(teacher, 2)
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.zero_()
    student.model.generation_config.eos_token_id = 7
    assert weights_fingerprint(teacher.model) == teacher.fingerprint
    assert teacher.model.generation_config.eos_token_id == 1


def test_tied_embeddings_stay_tied():
    model: Any = shrink(text_teacher(tie_word_embeddings=True), 2).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_student_of_a_half_precision_teacher_is_float32():
    teacher = text_teacher()
    teacher.model.to(torch.bfloat16)
    student = shrink(teacher, 2)
    assert {value.dtype for value in student.model.state_dict().values()} == {torch.float32}
    assert student.model.config.dtype == torch.float32


@pytest.mark.parametrize("make", [text_teacher, llava_teacher], ids=["text", "llava"])
def test_a_shrunk_student_is_saved_and_comes_back_equal(make: Any, tmp_path: Path):
    teacher = make()
    student = shrink(teacher, 3)
    save_model(student, tmp_path / "student")
    loaded = load_model(str(tmp_path / "student"))
    torch.testing.assert_close(logits_of(loaded), logits_of(student), atol=0, rtol=0)
    assert loaded.stop_ids == student.stop_ids == teacher.stop_ids
    assert loaded.model.config.get_text_config().num_hidden_layers == 3


def test_vision_tower_and_projector_of_a_llava_are_copied():
    teacher = llava_teacher()
    student = shrink(teacher, 1)
    theirs, ours = teacher.model.state_dict(), student.model.state_dict()
    kept = [name for name in theirs if "vision_tower" in name or "multi_modal_projector" in name]
    assert kept
    assert all(torch.equal(ours[name], theirs[name]) for name in kept)
    assert (student.processor, student.image_token_ids) == (teacher.processor, teacher.image_token_ids)


@pytest.mark.parametrize(
    ("model_type", "key", "settings"),
    [
        ("qwen2", "layer_types", {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 4}),
        ("gemma2", "layer_types", {"sliding_window": 4}),
        ("smollm3", "no_rope_layers", {}),
    ],
)
def test_lists_with_one_entry_per_layer_are_cut_alike(
    model_type: str, key: str, settings: dict[str, Any], tmp_path: Path
):
    teacher = text_teacher(model_type, **settings)
    student = shrink(teacher, (0, 3))
    theirs, ours = getattr(teacher.model.config, key), getattr(student.model.config, key)
    assert ours == [theirs[0], theirs[3]]
    assert len(set(ours)) == 2
    save_model(student, tmp_path / "student")
    torch.testing.assert_close(logits_of(load_model(str(tmp_path / "student"))), logits_of(student))


def test_layers_that_mean_something_else_at_another_place_are_refused():
    # Only the first layer is dense.
    teacher = text_teacher("qwen3_moe", mlp_only_layers=[0], num_experts=4, moe_intermediate_size=8)
    assert shrink(teacher, (0, 3)).model.config.num_hidden_layers == 2
    with pytest.raises(AdapterError, match="layers of 'qwen3_moe' differ by their place"):
        shrink(teacher, (1, 3))


def test_the_student_of_a_skeleton_is_a_skeleton_with_the_same_shapes(tmp_path: Path):
    teacher = text_teacher()
    save_model(teacher, tmp_path / "teacher")
    skeleton = shrink(load_skeleton(str(tmp_path / "teacher")), 2)
    assert skeleton.fingerprint == SKELETON
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    shapes = {name: value.shape for name, value in skeleton.model.state_dict().items()}
    assert shapes == {name: value.shape for name, value in shrink(teacher, 2).model.state_dict().items()}
    assert pair_report(teacher, skeleton).alignment.student == IdRange(stop=len(teacher.tokenizer))


def test_the_weights_of_an_offloaded_teacher_are_read_from_its_files(tmp_path: Path):
    teacher = text_teacher()
    save_model(teacher, tmp_path / "teacher")
    offloaded: Any = load_model(str(tmp_path / "teacher"), LoadOptions(placement="cpu_offload"))
    offloaded.model.model.layers[0].mlp.to("meta")
    torch.testing.assert_close(logits_of(shrink(offloaded, 4)), logits_of(teacher), atol=0, rtol=0)


def test_a_family_without_a_list_of_layers_is_refused():
    teacher = text_teacher()
    teacher.model.config.num_hidden_layers = 3
    with pytest.raises(AdapterError, match="expected one list of 3 decoder layers, found none"):
        shrink(teacher, 2)
