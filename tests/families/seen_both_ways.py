"""Tiny families in which the tokens of a picture, or of a whole prompt, see each other both ways."""

from typing import Any

from transformers import (
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma4AudioFeatureExtractor,
    Gemma4ImageProcessor,
    Gemma4Processor,
    Gemma4UnifiedAudioFeatureExtractor,
    Gemma4UnifiedImageProcessor,
    Gemma4UnifiedProcessor,
    Gemma4UnifiedVideoProcessor,
    Gemma4VideoProcessor,
    PaliGemmaProcessor,
    SiglipImageProcessor,
)

from tests.families.build import Build, Tiny, language, names
from tests.families.image_text_parts import (
    PATCH,
    SIGLIP,
    SIZE,
    SQUARE,
    TOWER,
    built,
    ids_of,
    template,
    tokenizer_of,
)

# A window so short that prompts leave it.
WINDOWED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
GEMMA = {"head_dim": 8, "hidden_activation": "gelu_pytorch_tanh"}
GEMMA4 = {**GEMMA, **WINDOWED, "global_head_dim": 8}
# The fewest tokens of a picture that the image processor knows.
POOLED = {"patch_size": PATCH, "pooling_kernel_size": 2, "max_soft_tokens": 70}
AUDIO = {"boa_token": "<|audio>", "audio_token": "<|audio|>", "eoa_token": "<audio|>"}


def gemma3() -> Tiny:
    """Token types say which tokens are of a picture."""
    tokenizer = tokenizer_of("<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>")
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size=SQUARE),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=template("<start_of_image>"),
    )
    return built(
        "gemma3",
        processor,
        text_config=language(tokenizer, **GEMMA, **WINDOWED, query_pre_attn_scalar=8),
        vision_config=SIGLIP,
        mm_tokens_per_image=4,
        **ids_of(tokenizer, "image_token", "boi_token", "eoi_token"),
    )


def gemma4(**text: Any) -> Tiny:
    """Only backwards by default; patches have positions, layers share keys, a second table of embeddings."""
    tokenizer = tokenizer_of("<|image|>", "<|video|>", boi_token="<|image>", eoi_token="<image|>", **AUDIO)
    processor = Gemma4Processor(
        feature_extractor=Gemma4AudioFeatureExtractor(),
        image_processor=Gemma4ImageProcessor(**POOLED),
        tokenizer=tokenizer,
        video_processor=Gemma4VideoProcessor(**POOLED),
        chat_template=template("<|image|>"),
    )
    settings = {
        **GEMMA4,
        "num_hidden_layers": 4,
        "layer_types": 2 * WINDOWED["layer_types"],
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 4,
        "vocab_size_per_layer_input": len(tokenizer),
    }
    tower = {"num_key_value_heads": 2, "head_dim": 8, "pooling_kernel_size": 2, "position_embedding_size": 64}
    return built(
        "gemma4",
        processor,
        text_config={**language(tokenizer, **settings, **text), "pad_token_id": tokenizer.pad_token_id},
        vision_config={**TOWER, **tower},
        **gemma4_ids(tokenizer),
    )


def gemma4_ids(tokenizer: Any) -> dict[str, int]:
    return {
        **ids_of(tokenizer, "image_token", "boi_token", "eoi_token", "audio_token", "boa_token"),
        "eoa_token_index": tokenizer.eoa_token_id,
        "video_token_id": tokenizer.convert_tokens_to_ids("<|video|>"),
    }


def gemma4_bidirectional() -> Tiny:
    """Token types say which tokens are of a picture."""
    return gemma4(use_bidirectional_attention="vision")


def gemma4_unified() -> Tiny:
    """Patches are projected without a tower; token types say which tokens are of a picture."""
    tokenizer = tokenizer_of("<|image|>", "<|video|>", boi_token="<|image>", eoi_token="<image|>", **AUDIO)
    processor = Gemma4UnifiedProcessor(
        feature_extractor=Gemma4UnifiedAudioFeatureExtractor(),
        image_processor=Gemma4UnifiedImageProcessor(**POOLED),
        tokenizer=tokenizer,
        video_processor=Gemma4UnifiedVideoProcessor(**POOLED),
        chat_template=template("<|image|>"),
    )
    patches = {"patch_size": PATCH, "pooling_kernel_size": 2, "mm_embed_dim": 16, "output_proj_dims": 16}
    return built(
        "gemma4_unified",
        processor,
        text_config={**language(tokenizer, **GEMMA4), "pad_token_id": tokenizer.pad_token_id},
        vision_config={**patches, "mm_posemb_size": 64},
        **gemma4_ids(tokenizer),
    )


def paligemma(text: str = "gemma", **settings: Any) -> Tiny:
    """A whole prompt sees itself both ways, a response only backwards; no prompt without a picture."""
    tokenizer = tokenizer_of("<image>", bos_token="<bos>")
    image_processor = SiglipImageProcessor(size=SQUARE)
    image_processor.image_seq_length = (SIZE // PATCH) ** 2
    processor = PaliGemmaProcessor(
        image_processor=image_processor, tokenizer=tokenizer, chat_template=template("<image>")
    )
    return built(
        "paligemma",
        processor,
        # The processor adds tokens.
        text_config=language(tokenizer, model_type=text, **GEMMA, **settings),
        vision_config=SIGLIP,
        image_token_id=tokenizer.image_token_id,
        vocab_size=len(tokenizer),
        projection_dim=16,
        hidden_size=16,
    )


def paligemma2() -> Tiny:
    """PaliGemma with the windows and soft caps of Gemma 2."""
    return paligemma("gemma2", **WINDOWED, query_pre_attn_scalar=8)


def t5gemma2() -> Tiny:
    """An encoder reads prompts and pictures, a decoder answers: to be refused."""
    tokenizer = tokenizer_of("<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>")
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size=SQUARE),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=template("<start_of_image>"),
    )
    ids = {"bos_token_id": tokenizer.pad_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = {**language(tokenizer, **GEMMA, **WINDOWED, query_pre_attn_scalar=8), **ids}
    return built(
        "t5gemma2",
        processor,
        encoder={"text_config": text, "vision_config": SIGLIP, "mm_tokens_per_image": 4},
        decoder=text,
        image_token_index=tokenizer.image_token_id,
    )


FAMILIES: dict[str, Build] = names(
    [gemma3, gemma4, gemma4_bidirectional, gemma4_unified, paligemma, paligemma2]
)
