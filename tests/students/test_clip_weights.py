import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn

from vlm_distill.errors import AdapterError
from vlm_distill.students.clip_weights import convert_tower

SMALL = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 2, "heads": 2, "mlp_ratio": 2.0}


def disturb(module: nn.Module) -> nn.Module:
    """Give norms and biases other values than their neutral start, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def features_of(visual: VisionTransformer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the blocks of open_clip give, and its last norm for the class token."""
    blocks = visual.transformer(visual._embeds(images))
    return blocks, visual.ln_post(blocks)[:, 0]


def assert_equal_features(visual: nn.Module, *, size: int) -> None:
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    tower = convert_tower(visual).model
    with torch.no_grad():
        blocks, pooled = features_of(visual, images)
        output = tower(images, output_hidden_states=True)
    torch.testing.assert_close(output.last_hidden_state, blocks, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.hidden_states[-1], blocks, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.pooler_output, pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", [nn.GELU, QuickGELU])
def test_a_converted_tower_has_the_features_of_open_clip(activation):
    torch.manual_seed(0)
    assert_equal_features(disturb(VisionTransformer(**SMALL, act_layer=activation)), size=16)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu"])
def test_a_tower_of_the_open_clip_list_has_its_features(name):
    torch.manual_seed(0)
    assert_equal_features(open_clip.create_model(name, pretrained=None).visual.eval(), size=224)


def test_the_projection_of_the_pooled_output_is_left_out_and_nothing_else():
    visual = VisionTransformer(**SMALL)
    ours, theirs = convert_tower(visual).model, visual.state_dict()
    assert sum(p.numel() for p in ours.parameters()) == sum(
        value.numel() for name, value in theirs.items() if name != "proj"
    )


def test_the_image_processor_has_the_size_and_normalisation_of_open_clip():
    processor = convert_tower(VisionTransformer(**SMALL)).image_processor
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (16, 16)
    assert tuple(processor.image_mean) == open_clip.OPENAI_DATASET_MEAN
    assert tuple(processor.image_std) == open_clip.OPENAI_DATASET_STD


def test_a_normalisation_of_the_model_wins_over_the_default():
    visual = VisionTransformer(**SMALL)
    visual.preprocess_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    processor = convert_tower(visual).image_processor
    assert (list(processor.image_mean), list(processor.image_std)) == ([0.5] * 3, [0.25] * 3)


@pytest.mark.parametrize(
    "extra", [{"ls_init_value": 0.1}, {"no_ln_pre": True}, {"attentional_pool": True, "attn_pooler_heads": 2}]
)
def test_a_vit_with_parts_that_clip_lacks_is_refused(extra):
    with pytest.raises(AdapterError, match="does not fit CLIPVisionModel"):
        convert_tower(VisionTransformer(**SMALL, **extra))


def test_a_tower_that_is_no_vit_is_refused():
    with pytest.raises(AdapterError, match="expected a plain ViT of open_clip such as ViT-B-32, got Linear"):
        convert_tower(nn.Linear(2, 2))
