"""Builds a LLaVA student: a vision tower, a projector and any causal language model in one checkpoint.

The result is transformers' own LlavaForConditionalGeneration, so a saved student needs nothing of this
package.
"""

import copy
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.adapters.chat import find_stop_ids, pad_id
from vlm_distill.adapters.foreign import blaming
from vlm_distill.adapters.head import output_head
from vlm_distill.adapters.llava import LLAVA
from vlm_distill.config import PathText, Record
from vlm_distill.errors import AdapterError, did_you_mean
from vlm_distill.models.load import load_model, load_tokenizer, wrap_model
from vlm_distill.models.skeleton import SKELETON, load_skeleton
from vlm_distill.students.clip_weights import Tower
from vlm_distill.students.tokenizer import IMAGE, TrainedTokenizer, num_ids, train_tokenizer, with_image_token
from vlm_distill.students.vision_tower import TowerConfig, build_tower, on_meta_device

logger = logging.getLogger(__name__)
COMMON = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Suggestions for a mistyped model_type; transformers has hundreds."""


class PretrainedLanguage(Record):
    """`{model: path or hub id}`: weights of a causal language model."""

    model: PathText


class ScratchLanguage(Record):
    """A causal language model with random weights, of any `model_type` of transformers with these keys."""

    model_type: str = "llama"
    hidden_size: int = Field(gt=0, le=10**6)
    num_hidden_layers: int = Field(gt=0, le=1000)
    num_attention_heads: int = Field(gt=0, le=10**4)
    num_key_value_heads: int | None = Field(default=None, gt=0, le=10**4)
    intermediate_size: int = Field(gt=0, le=10**7)
    initializer_range: float | None = Field(
        default=None,
        gt=0,
        le=1e3,
        description="standard deviation of the weights; default: that of the family",
    )
    max_position_embeddings: int = Field(default=2048, gt=0, le=10**9)
    tie_word_embeddings: bool = True


LanguageConfig = PretrainedLanguage | ScratchLanguage


class BuildConfig(Record):
    """A LLaVA student made of parts.

    `tokenizer` is `teacher` (the teacher's, so that ids are shared), `language` (that of `language.model`), a
    path or hub id, or `{train: ...}`. `vision_feature_layer` counts hidden states from the end (-2 as in
    LLaVA-1.5), `default` drops the class token of the tower, `full` keeps it.
    """

    vision: TowerConfig
    language: LanguageConfig
    projector: Literal["mlp"] = "mlp"
    projector_act: Literal["gelu", "relu", "silu"] = "gelu"
    tokenizer: PathText | TrainedTokenizer = "teacher"
    vision_feature_layer: int = -2
    vision_feature_select_strategy: Literal["default", "full"] = "default"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Parts:
    tower: Tower
    language: nn.Module
    tokenizer: Any
    image_token: str
    more_stop_ids: tuple[int, ...]

    @property
    def image_token_id(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(self.image_token))


def build_llava(
    config: BuildConfig, *, teacher: LoadedModel | None, texts: Iterable[str], seed: int
) -> LoadedModel:
    """Return the student in float32 on the CPU; equal arguments give equal weights.

    Torch's global generator is left as it was. `texts` train the tokenizer where the config asks for one, and
    are not read otherwise. With the meta device as torch's default and a teacher from `load_skeleton` the
    student is a skeleton too: no weights are read or allocated.

    Raises:
        AdapterError: parts do not fit together or cannot be found.
    """
    tokenizer, image_token = _choose_tokenizer(config, teacher=teacher, texts=texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = build_tower(config.vision, teacher=teacher)
        language = _build_language(config.language, tokenizer)
        parts = _Parts(
            tower=tower,
            language=language,
            tokenizer=tokenizer,
            image_token=image_token,
            # With the teacher's tokenizer the student learns to end its responses as the teacher does.
            more_stop_ids=teacher.stop_ids if teacher and config.tokenizer == "teacher" else (),
        )
        model = _assemble(config, parts)
    processor = _build_processor(config, parts)
    # A skeleton has no bytes to hash.
    known = SKELETON if on_meta_device() else None
    return wrap_model(LLAVA, model.eval(), processor, path="built", fingerprint=known)


def _choose_tokenizer(
    config: BuildConfig, *, teacher: LoadedModel | None, texts: Iterable[str]
) -> tuple[Any, str]:
    """Return a tokenizer that knows the image token, and that token."""
    choice, language = config.tokenizer, config.language
    if isinstance(choice, TrainedTokenizer):
        if isinstance(language, PretrainedLanguage):
            raise AdapterError(
                "student.build.tokenizer: a trained tokenizer cannot match the pretrained language model; "
                "use 'language' or 'teacher'"
            )
        return train_tokenizer(texts, settings=choice.train), IMAGE
    if choice == "teacher":
        if teacher is None:
            raise AdapterError(
                "student.build.tokenizer: 'teacher' needs a teacher, and there is none; "
                "use {train: {vocab_size: 512}}"
            )
        image_token = getattr(teacher.processor, "image_token", IMAGE)
        template = teacher.processor.chat_template
        return with_image_token(
            teacher.tokenizer, image_token=image_token, chat_template=template
        ), image_token
    if choice == "language":
        if not isinstance(language, PretrainedLanguage):
            raise AdapterError("student.build.tokenizer: 'language' needs student.build.language.model")
        choice = language.model
    tokenizer = load_tokenizer(choice)
    image_token = getattr(tokenizer, "image_token", IMAGE)
    return with_image_token(tokenizer, image_token=image_token), image_token


def _build_language(config: LanguageConfig, tokenizer: Any) -> nn.Module:
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": pad_id(tokenizer),
    }
    if isinstance(config, ScratchLanguage):
        if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise AdapterError(
                f"student.build.language.model_type: {config.model_type!r} is no causal language model of "
                f"transformers; {did_you_mean(config.model_type, COMMON)}"
            )
        settings = config.model_dump(exclude={"model_type"}, exclude_none=True)
        # Without this, families such as Qwen2 put in a number that belongs to their 7B model.
        settings["num_key_value_heads"] = config.num_key_value_heads or config.num_attention_heads
        with blaming("student.build.language", remedy="change its settings"):
            scratch = AutoConfig.for_model(
                config.model_type, vocab_size=num_ids(tokenizer), **ids, **settings
            )
            built: nn.Module = AutoModelForCausalLM.from_config(scratch, dtype=torch.float32)
        return built
    loaded = (
        load_skeleton(config.model)
        if on_meta_device()
        else load_model(config.model, LoadOptions(dtype="float32"))
    )
    if set(loaded.adapter.parts) != {"language"}:
        raise AdapterError(f"student.build.language.model: {config.model} is no causal language model")
    _require_same_ids(loaded.tokenizer, tokenizer, name=config.model)
    return _with_rows(loaded, tokenizer, name=config.model)


def _with_rows(loaded: LoadedModel, tokenizer: Any, *, name: str) -> nn.Module:
    """Return a language model with an embedding for every token; new ones are drawn around the mean."""
    model: Any = loaded.model
    num_rows, needed = model.get_input_embeddings().num_embeddings, num_ids(tokenizer)
    added = loaded.tokenizer.get_added_vocab()
    lost = [
        token for token, i in loaded.tokenizer.get_vocab().items() if i >= num_rows and token not in added
    ]
    if lost:
        raise AdapterError(
            f"student.build.language.model: {name} has {num_rows} embeddings, but its tokenizer has "
            f"{len(lost)} tokens beyond them (first: {lost[:5]}); fetch both from the same place"
        )
    if needed <= num_rows:
        return loaded.model
    is_skeleton = on_meta_device()
    if is_skeleton:  # Every run looks at its parts without weights first, so that this is said once.
        logger.info(
            "student.build.language.model: %s has %d embeddings, %d more for tokens without one (images)",
            name,
            num_rows,
            needed - num_rows,
        )
    # A mean of weights that are not there cannot be taken.
    model.resize_token_embeddings(needed, mean_resizing=not is_skeleton)
    return loaded.model


def _require_same_ids(own: Any, chosen: Any, *, name: str) -> None:
    """Refuse a tokenizer that would read the pretrained embeddings at the wrong rows."""
    known = chosen.get_vocab()
    moved = [token for token, token_id in own.get_vocab().items() if known.get(token, token_id) != token_id]
    missing = sorted(set(own.get_vocab()) - set(known) - set(own.all_special_tokens))
    if moved or missing:
        raise AdapterError(
            f"student.build: the tokenizer differs from that of {name} in {len(moved) + len(missing)} "
            f"tokens (first: {(moved + missing)[:5]}); use tokenizer: language, or another language model"
        )


def _assemble(config: BuildConfig, parts: _Parts) -> LlavaForConditionalGeneration:
    """Return the standard LLaVA with the weights of its parts and a fresh projector."""
    language: Any = parts.language
    head = output_head(language)
    if head.bias is not None or head.scale != 1.0 or head.soft_cap is not None:
        raise AdapterError(
            f"student.build.language: LLaVA has a plain output layer, but {language.config.model_type} adds "
            "a bias, a scale or a soft cap to its logits; choose another language model"
        )
    vision = parts.tower.model.config
    _require_layer(config, vision.num_hidden_layers)
    grid = vision.image_size // vision.patch_size
    family = language.config.model_type
    with blaming(
        f"student.build.language: LLaVA cannot take a language model of {family}",
        remedy=f"choose another one, of {', '.join(COMMON)} for example",
    ):
        model = LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=vision,
                text_config=language.config,
                image_token_index=parts.image_token_id,
                image_seq_length=grid**2 + (config.vision_feature_select_strategy == "full"),
                projector_hidden_act=config.projector_act,
                vision_feature_layer=config.vision_feature_layer,
                vision_feature_select_strategy=config.vision_feature_select_strategy,
                tie_word_embeddings=language.config.tie_word_embeddings,
            )
        )
        model.model.vision_tower.load_state_dict(parts.tower.model.state_dict())
        model.model.language_model.load_state_dict(language.base_model.state_dict())
        if not language.config.tie_word_embeddings:
            model.lm_head.load_state_dict(language.lm_head.state_dict())
    model.generation_config = _generation_config(language, parts)
    return model


def _require_layer(config: BuildConfig, num_layers: int) -> None:
    # Hidden states are the embeddings and the output of every block.
    if not -num_layers - 1 <= config.vision_feature_layer <= num_layers:
        raise AdapterError(
            f"student.build.vision_feature_layer: the tower has {num_layers} layers, so expected "
            f"{-num_layers - 1}..{num_layers}, got {config.vision_feature_layer}"
        )


def _generation_config(language: nn.Module, parts: _Parts) -> GenerationConfig:
    own = find_stop_ids(getattr(language, "generation_config", None), parts.tokenizer)
    stops = tuple(dict.fromkeys((*own, *parts.more_stop_ids)))
    return GenerationConfig(
        bos_token_id=parts.tokenizer.bos_token_id,
        eos_token_id=list(stops) if len(stops) > 1 else stops[0],
        pad_token_id=pad_id(parts.tokenizer),
        # A generated placeholder would have no image behind it.
        suppress_tokens=[parts.image_token_id],
    )


def _build_processor(config: BuildConfig, parts: _Parts) -> LlavaProcessor:
    return LlavaProcessor(
        image_processor=copy.deepcopy(parts.tower.image_processor),
        tokenizer=parts.tokenizer,
        patch_size=parts.tower.model.config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,  # the class token, which strategy "default" takes away again
        image_token=parts.image_token,
        chat_template=parts.tokenizer.chat_template,
    )
