"""Pairs whose processors, image tokens and output layers differ, against plain transformers in float64."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.families import llava_like, qwen_like, text
from tests.families.build import randomised
from tests.losses.loss_oracle import plain_divergence
from tests.stages import config, load_images, make_items, make_stage
from tests.tiny import with_width
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.adapters.catalog import find_adapter
from vlm_distill.alignment.pair import align, num_image_tokens
from vlm_distill.batches import TrainItem
from vlm_distill.losses import KD, SkewKL
from vlm_distill.models.load import wrap_model
from vlm_distill.training.trainer import Trainer

BUILDS = {**llava_like.FAMILIES, **qwen_like.FAMILIES, **text.FAMILIES}
DIVERGENCE = SkewKL(alpha=0.1)
PAIRS = {
    "llava teaches qwen2_vl": ("llava", "qwen2_vl", None, None),
    "qwen2_vl teaches llava": ("qwen2_vl", "llava", None, None),
    "wide teaches narrow": ("llava", "llava", 1128, 1000),
    "narrow teaches wide": ("llava", "llava", 1000, 1128),
    "both at once": ("qwen2_vl", "llava", 1000, 1128),
    "text teaches images": ("llama", "llava", None, None),
}


def in_float64(name: str, width: int | None, *, seed: int = 0) -> LoadedModel:
    model, processor = BUILDS[name]()
    model = randomised(model, seed=seed)
    loaded = wrap_model(find_adapter(model.config.model_type), model, processor, path=name)
    loaded = loaded if width is None else with_width(loaded, width)
    loaded.model.double()
    return loaded


def plain_logits(loaded: LoadedModel, item: TrainItem, token_ids: Sequence[int]) -> Tensor:
    """Return the logits that predict a response, from one forward of the whole model without padding."""
    pictures = iter(load_images(item.example))
    [turn] = item.example.messages
    parts = [
        {"type": "text", "text": part.text}
        if part.type == "text"
        else {"type": "image", "image": next(pictures)}
        for part in turn.content
    ]
    content = parts if loaded.image_token_ids else "".join(part["text"] for part in parts)
    encoded = loaded.processor.apply_chat_template(
        [{"role": turn.role, "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    shape, inputs = encoded["input_ids"].shape, dict(encoded)
    for key, value in encoded.items():
        if value.shape == shape:
            # What a prompt has for each token, a response of text has too.
            more = {"input_ids": list(token_ids), "attention_mask": [1] * len(token_ids)}
            rest = more.get(key, [0] * len(token_ids))
            inputs[key] = torch.cat([value, torch.tensor([rest], dtype=value.dtype)], dim=1)
        elif value.is_floating_point():
            inputs[key] = value.double()
    logits = loaded.model(**inputs).logits[0]
    return logits[shape[1] - 1 : -1]


def plain_loss(
    teacher: LoadedModel, student: LoadedModel, items: Sequence[TrainItem], *, num_ids: int
) -> Tensor:
    """Return the mean over the tokens of the teacher's responses, of the first `num_ids` ids of both."""
    rows = []
    for item in items:
        ids = item.responses[0].token_ids
        with torch.no_grad():
            theirs = plain_logits(teacher, item, ids)[:, :num_ids]
        rows.append(plain_divergence(DIVERGENCE, plain_logits(student, item, ids)[:, :num_ids], theirs))
    return torch.cat(rows).mean()


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_loss_and_gradient_are_those_of_plain_transformers(
    tmp_path: Path, pair: tuple[str, str, int | None, int | None]
) -> None:
    teacher, student = in_float64(pair[0], pair[2], seed=1), in_float64(pair[1], pair[3])
    sees = bool(teacher.image_token_ids and student.image_token_ids)
    items = make_items(num_images=int(sees))
    if pair[0] != pair[1]:
        assert num_image_tokens(teacher) != num_image_tokens(student)
    alignment = align(teacher, student)
    num_ids = alignment.student.size(len(student.head.weight))
    loss = plain_loss(teacher, student, items, num_ids=num_ids)
    loss.backward()
    expected = {
        name: one.grad.clone() for name, one in student.model.named_parameters() if one.grad is not None
    }
    student.model.zero_grad()
    stage = make_stage(
        tmp_path,
        student=student,
        teacher=teacher,
        alignment=alignment,
        items=items,
        objective=KD(divergence=DIVERGENCE).build(),
    )
    trainer = Trainer(config(batch_size=6, micro_batch_size=3, max_grad_norm=1e9), stage, print)
    trainer.optimizer.zero_grad = lambda: None
    found = trainer.optimizer_step()["loss_sum"]
    assert found == pytest.approx(loss.item(), rel=1e-6)
    largest = max(float(one.abs().max()) for one in expected.values())
    for name, one in student.model.named_parameters():
        if name in expected:
            torch.testing.assert_close(one.grad, expected[name], rtol=0, atol=1e-6 * largest, msg=name)
        else:
            assert one.grad is None or float(one.grad.abs().max()) < 1e-9 * largest, name
