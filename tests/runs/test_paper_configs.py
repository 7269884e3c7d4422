"""What needs a hub and GPUs is at least what it claims: it decodes, has the published numbers, and fits."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.fsdp import StateDictType
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from tests.tiny import picture
from vlm_distill.config.assets import asset_folder
from vlm_distill.data.dataset import Dataset
from vlm_distill.data.recipe import load_recipe, prepare
from vlm_distill.data.sources import Files, Hub
from vlm_distill.generation.vllm_engine import VllmEngineConfig
from vlm_distill.losses import DistiLLM2
from vlm_distill.models.lora import Lora
from vlm_distill.records import Example, Image, Message, Text
from vlm_distill.runs.config import RunConfig, load_run

CONFIGS = ("paper_llava_rlaifv", "paper_qwen2_ultrachat", "qwen2_5_vl")
LAUNCH = asset_folder("configs") / "launch"
NUM_GPUS = 8


def run_of(name: str) -> RunConfig:
    config = load_run(name)
    assert config.teacher is not None
    assert config.train is not None
    return config


@pytest.mark.parametrize("name", CONFIGS)
def test_a_large_run_trains_in_bf16_with_recomputed_activations(name: str):
    config = run_of(name)
    assert config.teacher.dtype == "bfloat16"
    for train in (config.train, *([config.warmup.train] if config.warmup else [])):
        assert (train.precision, train.gradient_checkpointing) == ("bf16", True)
        # Sharded forwards are collective: every process needs as many of them.
        assert train.batch_size % (NUM_GPUS * train.micro_batch_size) == 0


@pytest.mark.parametrize("name", CONFIGS)
def test_a_large_run_samples_with_an_engine_that_its_own_command_allows(name: str):
    engine, text = load_run(name).generate.engine, (asset_folder("configs") / f"{name}.yaml").read_text()
    if isinstance(engine, VllmEngineConfig):
        assert f"vlm-distill run configs/{name}.yaml\n" in text
        assert load_run(name).generate.sampling.max_new_tokens < (engine.max_model_len or 0)
        launched = next(line for line in text.splitlines() if "accelerate launch" in line)
        override = launched.partition('"')[2].rstrip('"')
        assert load_run(name, [override]).generate.engine.kind == "transformers"
    else:
        assert "accelerate launch" in text


@pytest.mark.parametrize("name", CONFIGS)
def test_a_large_run_holds_out_the_prompts_it_measures_agreement_on(name: str):
    config = run_of(name)
    assert load_recipe(config.data.recipe, config.data.overrides).split.held_out > 0
    assert config.evaluate is not None
    assert config.evaluate.agreement_examples > 0
    # No task of its benchmarks is shipped, and another suite would say nothing of these models.
    assert config.evaluate.suite is None


@pytest.mark.parametrize(
    ("name", "models", "numbers"),
    [
        (
            "paper_llava_rlaifv",
            ("llava-hf/llava-1.5-7b-hf", "bczhou/tiny-llava-v1-hf"),
            {"recipe": "rlaif_v", "learning_rate": 2e-5, "batch_size": 256},
        ),
        (
            "paper_qwen2_ultrachat",
            ("Qwen/Qwen2-7B-Instruct", "Qwen/Qwen2-1.5B"),
            {"recipe": "ultrachat", "learning_rate": 5e-5, "batch_size": 128, "rounds": 3},
        ),
    ],
)
def test_a_config_of_the_paper_has_its_published_numbers(
    name: str, models: tuple[str, str], numbers: dict[str, Any]
):
    config = run_of(name)
    assert (config.teacher.model, config.student.model) == models
    assert config.objective == DistiLLM2(preset="paper")
    assert (config.train.schedule, config.train.warmup_ratio) == ("cosine", 0.1)
    assert isinstance(config.train.trainable.language, Lora)
    assert config.train.trainable.language.rank == 16
    sampling = config.generate.sampling
    assert (sampling.temperature, sampling.top_p, sampling.num_samples) == (0.8, 0.95, 1)
    found = {
        "recipe": config.data.recipe,
        "learning_rate": config.train.learning_rate,
        "batch_size": config.train.batch_size,
        "rounds": config.rounds,
    }
    assert {key: found[key] for key in numbers} == numbers


def prepared(name: str, folder: Path, paths: str, **settings: str) -> Dataset:
    """Prepare a shipped recipe with its own columns, prompts and split, but on a local table."""
    recipe = load_recipe(name)
    [entry] = recipe.sources
    assert isinstance(entry.source, Hub | Files)
    local = Files(name=entry.source.name, paths=paths, columns=entry.source.columns, **settings)
    recipe = recipe.model_copy(update={"sources": [entry.model_copy(update={"source": local})]})
    return prepare(recipe, folder / "data", log=lambda _: None)


def by_id(dataset: Dataset) -> dict[str, Example]:
    return {one.id: one for one in (*dataset.train, *dataset.held_out)}


def png(folder: Path, color: str) -> bytes:
    picture(color).save(folder / f"{color}.png")
    return (folder / f"{color}.png").read_bytes()


def asked(text: str, *, num_images: int = 0) -> Message:
    return Message(role="user", content=(*[Image() for _ in range(num_images)], Text(text=text)))


def test_rlaif_v_gives_each_question_under_its_image_once(tmp_path: Path):
    columns = {"ds_name": "RLAIF-V", "origin_dataset": "VQAv2", "origin_split": "{}", "image_path": ""}
    rows = [
        {
            **columns,
            "idx": str(number),
            "image": {"bytes": png(tmp_path, color), "path": f"{color}.jpg"},
            "question": question,
            "chosen": f"good {number}",
            "rejected": "bad",
        }
        for number, (color, question) in enumerate(
            [("red", "What is it?"), ("red", "What is it?"), ("red", "Why?"), ("blue", "What is it?")]
        )
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rlaif_v.parquet")
    dataset = prepared("rlaif_v", tmp_path, str(tmp_path / "rlaif_v.parquet"))
    examples = by_id(dataset)
    assert set(examples) == {"rlaif_v-0", "rlaif_v-2", "rlaif_v-3"}
    assert examples["rlaif_v-0"].messages == (asked("What is it?", num_images=1),)
    assert examples["rlaif_v-0"].images == examples["rlaif_v-2"].images != examples["rlaif_v-3"].images
    assert examples["rlaif_v-0"].references == ()
    assert examples["rlaif_v-0"].meta == {"origin": "VQAv2"}


def test_ultrachat_gives_the_first_question_and_no_answer(tmp_path: Path):
    turns = [
        {"content": "Name a river.", "role": "user"},
        {"content": "The Rhine.", "role": "assistant"},
        {"content": "Another?", "role": "user"},
        {"content": "The Po.", "role": "assistant"},
    ]
    rows = [{"prompt": "Name a river.", "prompt_id": "ab12", "messages": turns}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train_sft.parquet")
    dataset = prepared("ultrachat", tmp_path, str(tmp_path / "train_sft.parquet"))
    assert by_id(dataset) == {"ab12": Example(id="ab12", messages=(asked("Name a river."),))}


def test_llava_instruct_keeps_conversations_that_share_a_picture_and_its_id(tmp_path: Path):
    coco = tmp_path / "train2017"
    coco.mkdir()
    (coco / "000000033471.jpg").write_bytes(png(tmp_path, "red"))
    rows = [
        {
            "id": "000000033471",
            "image": "000000033471.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat color is the bus?"},
                {"from": "gpt", "value": "Red."},
                {"from": "human", "value": "And what is on its back?"},
                {"from": "gpt", "value": "An advertisement."},
            ],
        },
        {
            "id": "000000033471",
            "image": "000000033471.jpg",
            "conversations": [
                {"from": "human", "value": "Describe the picture.\n<image>"},
                {"from": "gpt", "value": "A red bus."},
            ],
        },
    ]
    (tmp_path / "llava.json").write_text(json.dumps(rows))
    examples = by_id(prepared("llava_instruct", tmp_path, str(tmp_path / "llava.json"), image_root=str(coco)))
    first, second = examples["llava_instruct-0"], examples["llava_instruct-1"]
    assert first.messages == (
        asked("What color is the bus?", num_images=1),
        Message(role="assistant", content=(Text(text="Red."),)),
        asked("And what is on its back?"),
    )
    assert (first.references, second.references) == (("An advertisement.",), ("A red bus.",))
    assert second.messages[0].content == (Text(text="Describe the picture."), Image())
    assert first.images == second.images


def launched(name: str, *options: str) -> tuple[Any, dict[str, str]]:
    """Return the arguments and the environment with which accelerate launches its processes."""
    parser = launch_command_parser()
    arguments = parser.parse_args(["--config_file", str(LAUNCH / name), *options, "-m", "vlm_distill.cli"])
    arguments, _, _ = _validate_launch_command(arguments)
    return arguments, prepare_multi_gpu_env(arguments)


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_launch_file_says_what_it_is_for_and_has_no_key_that_accelerate_would_ignore(path: Path):
    assert path.read_text().startswith("# accelerate launch: ")
    known = vars(launch_command_parser().parse_args(["-m", "x"]))
    values = yaml.safe_load(path.read_text())
    assert not set(values.get("fsdp_config", {})) - set(known)
    # Of unknown keys beside them accelerate complains itself.
    arguments, _ = launched(path.name)
    assert (arguments.num_machines, arguments.num_processes) == (1, NUM_GPUS)
    # The trainer says which precision; one that the launcher sets would be another truth.
    assert "mixed_precision" not in values


def test_the_launch_file_for_data_parallelism_shards_nothing():
    arguments, environment = launched("ddp.yaml")
    assert (arguments.multi_gpu, arguments.use_fsdp) == (True, False)
    assert not [name for name in environment if name.startswith("FSDP") and name != "FSDP_VERSION"]


def test_the_launch_file_for_sharding_is_read_as_fsdp2(monkeypatch: pytest.MonkeyPatch):
    arguments, environment = launched("fsdp2.yaml", "--num_processes", "2")
    assert (arguments.use_fsdp, arguments.num_processes) == (True, 2)
    for name, value in environment.items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy
    assert plugin.state_dict_type is StateDictType.SHARDED_STATE_DICT
    assert not plugin.cpu_ram_efficient_loading
    assert not plugin.activation_checkpointing
