"""Pretrains the vision tower of the bundled teacher on the shapes and colours of easy-VQA, with labels.

The tower is an open_clip ViT; a linear layer on the mean of its patch tokens names the shape and the colour
of each training picture. (Under a language model the same tower learns the shapes several times more slowly.)
The result is a LLaVA checkpoint whose tower is trained and whose language model is not:
`configs/easy_vqa_teacher.yaml` takes the tower from it. About five minutes on two CPU cores.

    python tools/easy_vqa_tower.py runs/easy_vqa_tower
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vlm_distill.data.augment import Augment
from vlm_distill.data.dataset import Dataset
from vlm_distill.data.recipe import load_recipe, prepare
from vlm_distill.models.save import save_model
from vlm_distill.progress import progress
from vlm_distill.records import Example
from vlm_distill.students.build import BuildConfig, build_llava
from vlm_distill.students.clip_weights import convert_tower

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
TOWER = {"image_size": 64, "patch_size": 8, "width": 128, "layers": 4, "heads": 4}
LANGUAGE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 32}
UNKNOWN = -100
AUGMENT = Augment(flip=True, transpose=True, shift=4)


class Classifier(nn.Module):
    """Names shape and colour from the mean of the patch tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = VisionTransformer(**TOWER, mlp_ratio=4.0, output_tokens=True)
        self.head = nn.Linear(TOWER["width"], len(SHAPES) + len(COLORS))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        _, tokens = self.tower(pixels)
        logits = self.head(tokens.mean(dim=1))
        return logits[:, : len(SHAPES)], logits[:, len(SHAPES) :]


def labels_of(examples: Sequence[Example]) -> dict[str, tuple[int, int]]:
    """Return shape and colour of each picture as far as its questions tell them, UNKNOWN otherwise."""
    found: dict[str, list[int]] = {}
    for example in examples:
        label = found.setdefault(example.images[0], [UNKNOWN, UNKNOWN])
        answer = example.references[0]
        if answer in SHAPES:
            label[0] = SHAPES.index(answer)
        if answer in COLORS:
            label[1] = COLORS.index(answer)
    return {image: (shape, color) for image, (shape, color) in found.items()}


def batch_of(
    dataset: Dataset,
    images: Sequence[str],
    labels: Mapping[str, tuple[int, int]],
    *,
    processor: object,
    seed: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    pictures = [dataset.images.load(image) for image in images]
    if seed is not None:
        pictures = [AUGMENT(picture, seed=seed + number) for number, picture in enumerate(pictures)]
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    shapes, colors = (torch.tensor([labels[image][which] for image in images]) for which in (0, 1))
    return pixels, shapes, colors


def train(
    model: Classifier, dataset: Dataset, *, processor: object, steps: int, batch_size: int, rate: float
) -> None:
    labels = labels_of(dataset.train)
    images = sorted(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    draw = torch.Generator().manual_seed(0)
    for step in progress(range(steps), label="tower"):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        chosen = [
            images[index] for index in torch.randint(len(images), (batch_size,), generator=draw).tolist()
        ]
        pixels, shapes, colors = batch_of(
            dataset, chosen, labels, processor=processor, seed=step * batch_size
        )
        shape_logits, color_logits = model(pixels)
        loss = cross_entropy(shape_logits, shapes) + cross_entropy(color_logits, colors)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def accuracy(model: Classifier, dataset: Dataset, *, processor: object) -> list[float]:
    """Return the share of held-out pictures whose shape and whose colour is named rightly, where known."""
    labels = labels_of(dataset.held_out)
    pixels, *truth = batch_of(dataset, sorted(labels), labels, processor=processor, seed=None)
    named = [logits.argmax(dim=1) for logits in model(pixels)]
    known = [(guess == label)[label != UNKNOWN] for guess, label in zip(named, truth, strict=True)]
    return [float(right.float().mean()) for right in known]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=1800)
    options = parser.parse_args()
    torch.manual_seed(0)
    dataset = prepare(load_recipe("easy_vqa"), options.output / "data")
    build = BuildConfig(
        vision=TOWER, language=LANGUAGE, tokenizer={"train": {"vocab_size": 512}}, vision_feature_layer=-1
    )
    shell = build_llava(build, teacher=None, texts=["?"], seed=0)
    processor = shell.processor.image_processor
    model = Classifier()
    train(model, dataset, processor=processor, steps=options.steps, batch_size=64, rate=1e-3)
    shape, color = accuracy(model.eval(), dataset, processor=processor)
    print(f"held-out pictures: shape {shape:.4f}, colour {color:.4f}")
    shell.model.model.vision_tower.load_state_dict(convert_tower(model.tower).model.state_dict())
    save_model(shell, options.output / "model")


if __name__ == "__main__":
    main()
