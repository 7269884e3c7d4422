"""A tiny random model of the family, made without a download: `python -m my_family.tiny FOLDER` writes it."""

import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, CLIPImageProcessor, LlavaProcessor

import my_family.adapter  # noqa: F401 (it may tell transformers of the type)
from vlm_distill.students.tokenizer import BpeSettings, train_tokenizer

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWER = {"model_type": "clip_vision_model", **SIZES, "image_size": 16, "patch_size": 8}


def write(folder: Path) -> None:
    """Write a model of the LLaVA kind; put the configs and the processor of your family here."""
    tokenizer = train_tokenizer(["What colour is it?"], settings=BpeSettings(vocab_size=300))
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = AutoConfig.for_model(
        "my-type",
        vision_config=TOWER,
        text_config={"model_type": "llama", **SIZES, **ids, "vocab_size": len(tokenizer)},
        image_token_id=processor.image_token_id,
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    # Weights that are zero or one at the start (gates, biases, norms) would hide what is not read.
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
