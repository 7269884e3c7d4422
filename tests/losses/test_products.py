"""float32_product: the precision of its sums."""

import pytest
import torch
from torch import Tensor

from vlm_distill.losses import products
from vlm_distill.losses.products import float32_product

ROWS, VOCAB, WIDTH = 5, 300, 64


def factors(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(count, WIDTH, generator=generator) for count in (ROWS, VOCAB))
    return hidden.to(dtype), weight.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("columns_per_tile", [1, 7, VOCAB])
def test_the_sums_have_the_precision_of_float32(monkeypatch, dtype, columns_per_tile: int) -> None:
    monkeypatch.setattr(products, "WEIGHTS_PER_TILE", columns_per_tile * WIDTH)
    hidden, weight = factors(dtype)
    product = float32_product(hidden, weight)
    assert product.dtype == torch.float32
    exact = hidden.double() @ weight.double().T
    torch.testing.assert_close(product.double(), exact, rtol=1e-5, atol=1e-5)


def test_float64_stays() -> None:
    hidden, weight = factors(torch.float64)
    torch.testing.assert_close(float32_product(hidden, weight), hidden @ weight.T, rtol=0, atol=1e-13)


def test_autocast_rounds_the_factors_and_nothing_else() -> None:
    hidden, weight = factors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        product = float32_product(hidden, weight)
    exact = hidden.bfloat16().double() @ weight.bfloat16().double().T
    torch.testing.assert_close(product.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cuda_device_writes_float32(dtype: torch.dtype) -> None:
    hidden, weight = factors(dtype)
    product = float32_product(hidden.cuda(), weight.cuda())
    assert product.dtype == torch.float32
    exact = hidden.double() @ weight.double().T
    torch.testing.assert_close(product.double().cpu(), exact, rtol=1e-4, atol=1e-4)
    assert float32_product(hidden[:0].cuda(), weight[3:9].cuda()).shape == (0, 6)
    with torch.autocast("cuda", dtype):
        product = float32_product(hidden.float().cuda(), weight.float().cuda())
    torch.testing.assert_close(product.double().cpu(), exact, rtol=1e-4, atol=1e-4)
