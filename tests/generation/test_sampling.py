import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from vlm_distill.config import decode
from vlm_distill.errors import ConfigError
from vlm_distill.generation.engine import Sampling
from vlm_distill.generation.sampling import choose_tokens, row_uniforms

SETTINGS = [
    Sampling(),
    Sampling(temperature=0.7),
    Sampling(temperature=1.5, top_k=5),
    Sampling(top_p=0.8),
    Sampling(temperature=0.8, top_k=6, top_p=0.7),
    Sampling(top_k=50),
    Sampling(top_p=0.01),
]


def reference_distribution(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return warpers(None, logits.double()).softmax(dim=-1)


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_tokens_follow_the_distribution_of_the_transformers_warpers(sampling: Sampling) -> None:
    vocabulary, grid = 12, 20_000
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(0)) * 2
    uniforms = (torch.arange(grid) + 0.5) / grid
    chosen = choose_tokens(logits.expand(grid, -1), uniforms, sampling)
    frequencies = chosen.bincount(minlength=vocabulary) / grid
    expected = reference_distribution(logits, sampling)[0]
    assert torch.allclose(frequencies.double(), expected, atol=2e-4)
    assert not frequencies[expected == 0].any()


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_the_largest_uniform_never_chooses_an_impossible_token(sampling: Sampling) -> None:
    logits = torch.full((1, 2_000), -torch.inf)
    logits[0, 700:900] = torch.randn(200, generator=torch.Generator().manual_seed(1))
    largest = torch.nextafter(torch.tensor([1.0]), torch.tensor([0.0]))
    for uniform in (torch.zeros(1), largest, torch.ones(1)):
        chosen = choose_tokens(logits, uniform, sampling)
        assert reference_distribution(logits, sampling)[0, chosen] > 0


def test_temperature_zero_takes_the_most_likely_token() -> None:
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    assert choose_tokens(logits, torch.rand(5), Sampling(temperature=0)).equal(logits.argmax(dim=1))


def test_a_row_of_nan_does_not_stop_the_others() -> None:
    logits = torch.zeros(2, 4)
    logits[0] = torch.nan
    for sampling in SETTINGS:
        assert 0 <= choose_tokens(logits, torch.tensor([0.5, 0.5]), sampling)[1] < 4


def test_uniforms_depend_on_the_row_and_not_on_its_neighbours() -> None:
    sampling = Sampling(num_samples=2, max_new_tokens=7)
    alone, together = row_uniforms(["b"], sampling), row_uniforms(["a", "b"], sampling)
    assert alone.shape == (2, 7)
    assert alone.equal(together[2:])
    assert len(together.unique()) == together.numel()
    assert row_uniforms(["b"], Sampling(max_new_tokens=7)).equal(alone[:1])
    assert not row_uniforms(["b"], sampling.model_copy(update={"seed": 1})).equal(alone)


def test_uniforms_are_uniform() -> None:
    numbers = row_uniforms([str(i) for i in range(200)], Sampling(max_new_tokens=50))
    counts = torch.histc(numbers, bins=10, min=0, max=1)
    assert counts.sub(1000).abs().max() < 120  # four standard deviations
    assert numbers.min() >= 0
    assert numbers.max() < 1


def test_contradicting_settings_are_one_line_errors() -> None:
    for values, hint in [
        ({"temperature": 0, "num_samples": 2}, "raise temperature"),
        ({"stop": ["a", ""]}, "empty stop string"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 5}, "max_new_tokens"),
    ]:
        with pytest.raises(ConfigError, match=hint):
            decode(Sampling, values, where="sampling")
