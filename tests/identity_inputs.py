"""What the jobs of identity.py start from: random teachers, pictures, tables and a config for each family.

Everything follows from fixed seeds. The families are text and Qwen2.5-VL with one token per byte, and LLaVA
with the bundled teacher.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.utils.logging import disable_progress_bar

IMAGE_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LANGUAGE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": None,
}
PATCH = {"patch_size": 4, "temporal_patch_size": 2}
TOWER = {
    **PATCH,
    "depth": 2,
    "num_heads": 2,
    "hidden_size": 16,
    "out_hidden_size": 16,
    "intermediate_size": 32,
    "spatial_merge_size": 2,
    "window_size": 16,
    "fullatt_block_indexes": [1],
    "initializer_range": 0.3,
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *IMAGE_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
        model_max_length=4096,
    )


def write_text_teacher(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**LANGUAGE, vocab_size=len(tokenizer), **ids))
    write_teacher(folder, model, tokenizer)


def write_qwen_teacher(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    sizes = {"size": {"shortest_edge": 64, "longest_edge": 1024}, "merge_size": 2, **PATCH}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(merge_size=2, **PATCH),
        chat_template=TEMPLATE,
    )
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    text = {**LANGUAGE, "vocab_size": len(tokenizer), "rope_parameters": rope, "pad_token_id": None}
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    ids = dict(zip(names, tokenizer.convert_tokens_to_ids(list(IMAGE_TOKENS)), strict=True))
    text |= {"eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(2)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=TOWER, **ids)
    write_teacher(folder, Qwen2_5_VLForConditionalGeneration(config), processor)


def write_teacher(folder: Path, model: Any, processor: Any) -> None:
    """Write a model that ends some of its answers itself."""
    with torch.no_grad():
        model.lm_head.weight[getattr(processor, "tokenizer", processor).eos_token_id] *= 3
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


COLORS = ("red", "green", "blue", "teal", "black", "gray", "brown", "yellow", "pink", "navy", "lime", "gold")
QUESTIONS = {
    "What color is the shape?": "{color}",
    "What shape is in the image?": "{shape}",
    "Is there a circle?": "{circle}",
    "Does the image contain a shape that is not red and has four sides?": "yes",
}
COLUMNS = {"id": "id", "question": "question", "references": "answer"}


def write_rows(folder: Path, name: str, colors: Iterable[str]) -> Path:
    """Write a picture a colour, not all of one size, and a table with all questions about each."""
    rows = []
    for number, color in enumerate(colors):
        shape = ("circle", "rectangle")[number % 2]
        picture = Image.new("RGB", (64, 64 - 16 * (number % 3)), "white")
        draw = getattr(ImageDraw.Draw(picture), {"circle": "ellipse"}.get(shape, shape))
        draw((4 + number, 6, 24 + number, 26), fill=color)
        picture.save(folder / f"{name}_{color}.png")
        answers = {"color": color, "shape": shape, "circle": "yes" if shape == "circle" else "no"}
        for index, (question, answer) in enumerate(QUESTIONS.items()):
            row = {"question": question, "answer": answer.format(**answers), "image": f"{name}_{color}.png"}
            rows.append({"id": f"{name}-{color}-{index}", **row})
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def source(path: Path, *, images: bool) -> dict[str, Any]:
    columns = {**COLUMNS, **({"image": "image"} if images else {})}
    return {"kind": "files", "paths": [str(path)], "columns": columns}


def write_yaml(path: Path, value: Mapping[str, Any]) -> str:
    path.write_text(yaml.safe_dump(dict(value), sort_keys=False), encoding="utf-8")
    return str(path)


def write_data(given: Path, *, images: bool) -> tuple[str, str]:
    """Write recipe, task and suite; return the paths of recipe and suite."""
    kind = "pictures" if images else "texts"
    table, test = write_rows(given, "train", COLORS), write_rows(given, "test", COLORS[:5])
    recipe = {
        "name": kind,
        "sources": [{"source": source(table, images=images)}],
        "split": {"held_out": 0.25, "by": "image" if images else "id"},
        "deduplicate": images,
    }
    task = {
        "name": kind,
        "version": 1,
        "data": source(test, images=images),
        "prompt": "{{ question }}",
        "output": {"kind": "generate", "max_new_tokens": 5},
        "metrics": [{"kind": "exact_match"}],
        "subsets": {"open": {"references_not_in": ["yes", "no"]}},
        **({"cluster_by": "image"} if images else {}),
        "verified": True,
    }
    suite = {"name": kind, "tasks": [write_yaml(given / f"{kind}_task.yaml", task)]}
    return (
        write_yaml(given / f"{kind}_recipe.yaml", recipe),
        write_yaml(given / f"{kind}_suite.yaml", suite),
    )


BUILD = {
    "vision": {"from": "teacher"},
    "language": {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
    "tokenizer": "teacher",
    "vision_feature_layer": -1,
}
STAGE = {
    "steps": 4,
    "batch_size": 6,
    "micro_batch_size": 4,
    "learning_rate": 1e-3,
    "weight_decay": 0.05,
    "checkpoint_every": 1,
    "log_every": 1,
}
LONG = {"steps": 60, "batch_size": 12, "learning_rate": 5e-3, "checkpoint_every": 25, "log_every": 10}


def write_config(given: Path, family: str, *, teacher: str, student: Mapping[str, Any]) -> None:
    """Write the config of a family; jobs change it by overrides."""
    images = family != "text"
    # A student that is new learns to answer in the warm-up; the others are their teachers with fewer layers.
    warmup = {**STAGE, **LONG} if "build" in student else {**STAGE}
    recipe, suite = write_data(given, images=images)
    config = {
        "name": family,
        "device": "cpu",
        "data": {"recipe": recipe},
        "teacher": {"model": teacher},
        "student": dict(student),
        "warmup": {"objective": {"kind": "seqkd"}, "train": warmup},
        "rounds": 1,
        "generate": {
            "engine": {"kind": "transformers", "batch_size": 16},
            "sampling": {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 6},
        },
        "objective": {"kind": "distillm2"},
        "train": {**STAGE},
        "evaluate": {"suite": suite, "agreement_tokens": 6, "shuffle_images": images},
    }
    write_yaml(given / f"{family}.yaml", config)


def write_given(given: Path) -> None:
    given.mkdir(parents=True)
    disable_progress_bar()
    write_text_teacher(given / "text_teacher")
    write_qwen_teacher(given / "qwen_teacher")
    write_config(given, "llava", teacher="bundled:easy_vqa_teacher", student={"build": BUILD})
    shrunk = {"shrink": {"layers": 2}}
    write_config(given, "text", teacher=str(given / "text_teacher"), student=shrunk)
    write_config(given, "qwen", teacher=str(given / "qwen_teacher"), student=shrunk)
