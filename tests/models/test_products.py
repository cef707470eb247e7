"""Products of linears: any library's, within float32 of the exact one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from qwen3q.models import products
from qwen3q.models.products import product

SHAPES = [(1, 512, 384), (5, 512, 384), (100, 512, 384), (333, 257, 640), (0, 512, 384)]


@pytest.fixture(params=["torch", "onednn"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "onednn" and not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(products, "_prefers_onednn", lambda: request.param == "onednn")
    return str(request.param)


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_products_are_exact_to_float32(library: str, shape: tuple[int, int, int]) -> None:
    rows, inputs, outputs = shape
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    exact = x.double() @ weight.double().T
    made = product(x, weight)
    assert made.shape == exact.shape
    assert (made - exact).norm() <= 1e-6 * exact.norm()
    into = product(x, weight, out=torch.empty(rows, outputs))
    torch.testing.assert_close(into, made, rtol=1e-5, atol=1e-4)


def test_any_leading_dimensions_and_strides(library: str) -> None:
    x = torch.randn(3, 7, 512).transpose(0, 1)[1:]
    weight = torch.randn(512, 600)[:, :512]
    torch.testing.assert_close(product(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_single_input_needs_no_leading_dimension(library: str, dtype: torch.dtype) -> None:
    x, weight = torch.randn(512).to(dtype), torch.randn(600, 512).to(dtype)
    torch.testing.assert_close(product(x, weight), product(x[None], weight)[0])
    assert product(x, weight).shape == (600,)


def test_what_is_not_finite_stays_in_its_row(library: str) -> None:
    x, weight = torch.randn(40, 512), torch.randn(384, 512)
    x[3, 0], x[7, 1] = torch.nan, torch.inf
    made = product(x, weight).isfinite().all(1)
    assert made.logical_not().nonzero()[:, 0].tolist() == [3, 7]


def test_bfloat16_products_are_those_of_torch() -> None:
    weight = torch.randn(384, 512, dtype=torch.bfloat16)
    for rows in (1, 40, 65):
        x = torch.randn(rows, 512, dtype=torch.bfloat16)
        torch.testing.assert_close(product(x, weight), F.linear(x, weight))


def test_experts_of_any_size_make_few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: set[torch.Size] = set()

    def watched(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        shapes.add(x.shape)
        return torch.empty(len(x), len(weight), dtype=x.dtype)

    monkeypatch.setattr(F, "linear", watched)
    weight = torch.empty(16, 16, dtype=torch.bfloat16)
    for rows in range(4097):
        assert product(torch.empty(rows, 16, dtype=torch.bfloat16), weight).shape == (rows, 16)
    assert len(shapes) < 90
    assert all(len(shape) == 2 for shape in shapes)


@pytest.mark.parametrize(
    ("told", "slow"),
    [({"cpu_name": "AMD EPYC"}, True), ({"cpu_name": "Intel Xeon"}, False), ({}, False)],
)
def test_a_processor_that_has_no_name_is_no_amd(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, str], slow: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert products.slow_mkl.__wrapped__() is slow
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert products.slow_mkl.__wrapped__() is False
