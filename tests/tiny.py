"""Tiny random models built in memory, for every test that needs a real model."""

import copy
from dataclasses import replace
from functools import lru_cache

import torch
from PIL import Image as Picture
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.causal_lm import CAUSAL_LM
from vlm_distill.models.load import wrap_model
from vlm_distill.records import Example, Image, Message, Text
from vlm_distill.students.build import BuildConfig, build_llava
from vlm_distill.students.tokenizer import BpeSettings, train_tokenizer

TEXTS = (
    "What color is the shape?",
    "Is there a red circle in the image?",
    "Is there a blue triangle? yes no",
    "What shape is in the image? circle rectangle triangle",
    "red green blue teal gray black brown yellow",
)
IMAGE_SIZE, PATCH_SIZE = 16, 8
VISION = {
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
    "width": 16,
    "layers": 2,
    "heads": 2,
    "mlp_ratio": 2.0,
}
LANGUAGE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VOCAB_SIZE = 300


@lru_cache(maxsize=8)
def tiny_text_model(seed: int = 0, *, hidden_size: int = 16) -> LoadedModel:
    """Return a random Llama of two layers; the object is shared between tests, so train only a deep copy."""
    tokenizer = train_tokenizer(TEXTS, settings=BpeSettings(vocab_size=VOCAB_SIZE))
    config = LlamaConfig(
        **{**LANGUAGE, "hidden_size": hidden_size},
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return wrap_model(CAUSAL_LM, model.eval(), tokenizer, path="tiny-text")


def with_width(loaded: LoadedModel, width: int) -> LoadedModel:
    """Return the model with an output layer of another width."""
    model = copy.deepcopy(loaded.model)
    model.resize_token_embeddings(width, mean_resizing=False)
    return replace(loaded, model=model)


@lru_cache(maxsize=8)
def tiny_llava(seed: int = 0, *, hidden_size: int = 16, **settings: object) -> LoadedModel:
    """Return a random LLaVA with four tokens per image; the object is shared, so train only a deep copy."""
    config = BuildConfig.model_validate(
        {
            "vision": VISION,
            "language": {**LANGUAGE, "hidden_size": hidden_size},
            "tokenizer": {"train": {"vocab_size": VOCAB_SIZE}},
            "vision_feature_layer": -1,
            **settings,
        }
    )
    return build_llava(config, teacher=None, texts=TEXTS, seed=seed)


def fresh(loaded: LoadedModel) -> LoadedModel:
    """Return a copy of a shared model, which may be trained."""
    return replace(loaded, model=copy.deepcopy(loaded.model))


def add_statistics(loaded: LoadedModel) -> nn.BatchNorm1d:
    """Normalise what a tiny LLaVA's tower reads over a batch of images, in place; return the layer."""
    tower = loaded.model.model.vision_tower
    tower.statistics = nn.BatchNorm1d(VISION["width"])
    embeddings = next(module for name, module in tower.named_modules() if name.endswith("embeddings"))
    # [image, token, width], normalised over images and tokens.
    embeddings.register_forward_hook(
        lambda module, args, states: tower.statistics(states.transpose(1, 2)).transpose(1, 2)
    )
    return tower.statistics


def with_places(loaded: LoadedModel, places: torch.Tensor) -> LoadedModel:
    """Return a copy whose output layer, which must not be tied, has token i at the id places[i]."""
    moved = fresh(loaded)
    weight = moved.model.get_output_embeddings().weight
    weight.data = weight.data[places.argsort()]
    return moved


def picture(color: str = "red", *, size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE)) -> Picture.Image:
    """Return a picture with one coloured square off the centre, so that patches differ."""
    image = Picture.new("RGB", size, "white")
    image.paste(Picture.new("RGB", (size[0] // 2, size[1] // 2), color), (1, 2))
    return image


def example(id: str, question: str, *, num_images: int = 0, system: str | None = None) -> Example:
    """Return a one-turn prompt whose image parts stand before the question; image hashes are made up."""
    turns = [Message(role="system", content=(Text(text=system),))] if system else []
    content = (*[Image() for _ in range(num_images)], Text(text=question))
    return Example(
        id=id,
        messages=(*turns, Message(role="user", content=content)),
        images=tuple(f"{id}-{number}" for number in range(num_images)),
    )
