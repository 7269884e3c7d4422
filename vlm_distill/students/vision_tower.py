"""Chooses the vision tower of a LLaVA student: a model of open_clip, a small one from scratch, or a copy."""

from typing import Any

import open_clip
import torch
from open_clip.transformer import VisionTransformer
from pydantic import ConfigDict, Field
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.foreign import blaming
from vlm_distill.config import PathText, Record
from vlm_distill.errors import AdapterError, did_you_mean
from vlm_distill.models.load import load_model
from vlm_distill.models.skeleton import load_skeleton
from vlm_distill.students.clip_weights import Tower, convert_tower


class OpenClipTower(Record):
    """`{name: ViT-B-32, pretrained: laion2b_s34b_b79k}`: a ViT of open_clip; random weights without a tag."""

    name: str
    pretrained: str | None = None


class CustomTower(Record):
    """A small ViT of open_clip from scratch; sizes in pixels."""

    image_size: int = Field(gt=0, le=10**4)
    patch_size: int = Field(gt=0, le=10**4)
    width: int = Field(gt=0, le=10**5)
    layers: int = Field(gt=0, le=1000)
    heads: int = Field(gt=0, le=10**4)
    mlp_ratio: float = Field(default=4.0, gt=0, le=100)


class CopiedTower(Record):
    """`{from: bundled:easy_vqa_teacher}`: weights and image processor of another LLaVA checkpoint.

    `from: teacher` means the teacher of the run.
    """

    model_config = ConfigDict(serialize_by_alias=True)
    source: PathText = Field(alias="from")


TowerConfig = OpenClipTower | CustomTower | CopiedTower


def build_tower(config: TowerConfig, *, teacher: LoadedModel | None) -> Tower:
    """Return the tower that `config` describes; random weights come from the global generator of torch."""
    if isinstance(config, CopiedTower):
        return _copy_tower(config.source, teacher)
    if isinstance(config, CustomTower):
        if config.image_size % config.patch_size or config.width % config.heads:
            raise AdapterError(
                f"student.build.vision: image_size {config.image_size} must be a multiple of patch_size "
                f"{config.patch_size}, and width {config.width} of heads {config.heads}"
            )
        return convert_tower(VisionTransformer(**config.model_dump()))
    return convert_tower(_open_clip_visual(config))


def _open_clip_visual(config: OpenClipTower) -> nn.Module:
    if config.name not in open_clip.list_models():
        raise AdapterError(
            f"student.build.vision.name: {config.name!r} is no model of open_clip; "
            f"{did_you_mean(config.name, _plain_vit_names())}"
        )
    tags = open_clip.list_pretrained_tags_by_model(config.name)
    if config.pretrained is not None and config.pretrained not in tags:
        raise AdapterError(
            f"student.build.vision.pretrained: {config.pretrained!r} is no weights tag of {config.name}; "
            f"{did_you_mean(config.pretrained, tags)}"
        )
    remedy = "choose another name or other weights"
    with blaming(f"student.build.vision: open_clip cannot create {config.name}", remedy=remedy):
        weights = None if on_meta_device() else config.pretrained
        model: Any = open_clip.create_model(
            config.name, pretrained=weights, device=torch.get_default_device()
        )
    visual: nn.Module = model.visual
    return visual


def on_meta_device() -> bool:
    """Return whether models are being built as skeletons, without weights."""
    return bool(torch.get_default_device().type == "meta")


def _plain_vit_names() -> list[str]:
    return [name for name in open_clip.list_models() if name.startswith("ViT-") and "SigLIP" not in name]


def _copy_tower(source: PathText, teacher: LoadedModel | None) -> Tower:
    if teacher is not None and source in ("teacher", teacher.path):
        original = teacher
    elif source == "teacher":
        raise AdapterError("student.build.vision.from: 'teacher' needs a teacher, and this run has none")
    else:
        original = load_skeleton(source) if on_meta_device() else load_model(source)
    model: Any = original.model
    base: Any = getattr(model, "model", None)
    if not isinstance(getattr(base, "vision_tower", None), CLIPVisionModel):
        raise AdapterError(
            f"student.build.vision.from: {source} is not a LLaVA checkpoint with a CLIP vision tower"
        )
    tower = CLIPVisionModel(CLIPVisionConfig.from_dict(base.vision_tower.config.to_dict()))
    tower.load_state_dict(base.vision_tower.state_dict())
    return Tower(model=tower.eval(), image_processor=original.processor.image_processor)
