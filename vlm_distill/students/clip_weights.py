"""Converts an open_clip ViT to transformers' CLIPVisionModel with equal features.

Which tower a student gets is decided in vision_tower.py.
"""

from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from vlm_distill.errors import AdapterError

# open_clip name -> CLIPVisionModel name, inside a block and outside; `proj` belongs to the contrastive head.
BLOCK_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
OUTER_NAMES = {
    "conv1.weight": "embeddings.patch_embedding.weight",
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Tower:
    """A vision tower with the image processor that feeds it."""

    model: CLIPVisionModel
    image_processor: Any


def convert_tower(visual: nn.Module) -> Tower:
    """Return an open_clip ViT as a CLIPVisionModel with equal features, and the image processor for it.

    Raises:
        AdapterError: the tower has parts that CLIPVisionModel lacks (timm trunks, ResNets, layer scale, qk
        norm, ...).
    """
    config = _clip_config(visual)
    tower = CLIPVisionModel(config)
    weights = convert_weights(visual.state_dict(), num_layers=config.num_hidden_layers)
    tower.load_state_dict(weights)
    preprocess = {**open_clip.transform.PreprocessCfg().__dict__, **getattr(visual, "preprocess_cfg", {})}
    size = config.image_size
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=list(preprocess["mean"]),
        image_std=list(preprocess["std"]),
    )
    return Tower(model=tower.eval(), image_processor=image_processor)


def _clip_config(visual: Any) -> CLIPVisionConfig:
    if not isinstance(visual, VisionTransformer):
        raise AdapterError(
            "student.build.vision: expected a plain ViT of open_clip such as ViT-B-32, "
            f"got {type(visual).__name__}"
        )
    block: Any = visual.transformer.resblocks[0]
    foreign = sorted(name for name in visual.state_dict() if not _is_plain(name))
    square = visual.image_size[0] == visual.image_size[1] and visual.patch_size[0] == visual.patch_size[1]
    if foreign or not square or not isinstance(visual.ln_pre, nn.LayerNorm):
        raise AdapterError(
            "student.build.vision: this ViT does not fit CLIPVisionModel "
            f"(extra weights: {foreign[:3]}, square: {square}); choose a plain one such as ViT-B-32"
        )
    return CLIPVisionConfig(
        hidden_size=visual.conv1.out_channels,
        intermediate_size=block.mlp.c_fc.out_features,
        num_hidden_layers=len(visual.transformer.resblocks),
        num_attention_heads=block.attn.num_heads,
        image_size=visual.image_size[0],
        patch_size=visual.patch_size[0],
        hidden_act=_activation_name(block.mlp.gelu),
        layer_norm_eps=block.ln_1.eps,
        projection_dim=visual.output_dim,
    )


def _activation_name(activation: nn.Module) -> str:
    if isinstance(activation, QuickGELU):
        return "quick_gelu"
    if isinstance(activation, nn.GELU):
        return "gelu_pytorch_tanh" if activation.approximate == "tanh" else "gelu"
    raise AdapterError(f"student.build.vision: CLIPVisionModel has no activation {type(activation).__name__}")


def _is_plain(name: str) -> bool:
    if name.startswith("transformer.resblocks."):
        inner = name.split(".", 3)[3]
        return (
            inner in ("attn.in_proj_weight", "attn.in_proj_bias") or inner.rpartition(".")[0] in BLOCK_NAMES
        )
    return name in OUTER_NAMES or name == "proj"


def convert_weights(weights: dict[str, Tensor], *, num_layers: int) -> dict[str, Tensor]:
    """Return the weights of an open_clip ViT under the names of CLIPVisionModel."""
    result = {new: weights[old] for old, new in OUTER_NAMES.items()}
    for layer in range(num_layers):
        old, new = f"transformer.resblocks.{layer}.", f"encoder.layers.{layer}."
        for kind in ("weight", "bias"):
            for theirs, ours in BLOCK_NAMES.items():
                result[f"{new}{ours}.{kind}"] = weights[f"{old}{theirs}.{kind}"]
            # open_clip stacks the three projections along the output axis.
            stacked = torch.chunk(weights[f"{old}attn.in_proj_{kind}"], 3)
            for name, part in zip(("q_proj", "k_proj", "v_proj"), stacked, strict=True):
                result[f"{new}self_attn.{name}.{kind}"] = part
    return result
