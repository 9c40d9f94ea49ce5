"""Norm, gate and rotary embedding: every form against float64."""

from collections.abc import Callable

import pytest
import torch

from loramux_server.kernels import pointwise
from loramux_server.kernels.cpu.pointwise import RmsNormCpu, RotateCpu, SiluMulCpu

NORMS: dict[str, Callable[[], Callable[..., torch.Tensor]]] = {
    "definition": lambda: pointwise.rms_norm,
    "cpu": RmsNormCpu,
}
GATES: dict[str, Callable[[], Callable[..., torch.Tensor]]] = {
    "definition": lambda: pointwise.silu_mul,
    "cpu": SiluMulCpu,
}
ROTATIONS: dict[str, Callable[[], Callable[..., None]]] = {
    "definition": lambda: pointwise.rotate,
    "cpu": RotateCpu,
}
TOKENS = [1, 2, 3, 40]


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("width", [16, 576, 50])
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("form", NORMS)
def test_rms_norm(form: str, tokens: int, width: int) -> None:
    torch.manual_seed(0)
    x, weight = 3 * torch.randn(1, tokens, width), torch.randn(width)
    wide = x.double()
    wanted = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    close(NORMS[form]()(x, weight, 1e-5), wanted)


@pytest.mark.parametrize("width", [16, 1536, 50])
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("form", GATES)
def test_silu_mul(form: str, tokens: int, width: int) -> None:
    torch.manual_seed(0)
    y = 5 * torch.randn(1, tokens, 2 * width)
    y[0, 0, :6] = torch.tensor([0.0, 88.0, -88.0, 1e4, -1e4, 1e-30])
    gate, up = y.double().chunk(2, -1)
    close(GATES[form]()(y), gate * torch.sigmoid(gate) * up)


@pytest.mark.parametrize("form", GATES)
def test_what_is_not_a_number_stays_so(form: str) -> None:
    y = torch.ones(1, 64)
    y[0, 3], y[0, 37] = float("nan"), float("inf")
    found = GATES[form]()(y)
    assert found[0, 3].isnan()
    assert found[0, 5].isinf()


@pytest.mark.parametrize("width", [32, 64, 96, 16])
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("form", ROTATIONS)
def test_rotate_changes_slices_of_a_packed_output_in_place(
    form: str, tokens: int, width: int
) -> None:
    torch.manual_seed(0)
    packed = torch.randn(tokens, 7 * width)
    before = packed.clone()
    q = packed[:, : 4 * width].view(tokens, 4, width)
    k = packed[:, 4 * width : 6 * width].view(tokens, 2, width)
    angle = torch.randn(tokens, width)
    ROTATIONS[form]()(q, k, angle.cos(), angle.sin())
    heads = before[:, : 6 * width].view(tokens, 6, width).double()
    a, b = heads.chunk(2, -1)
    wanted = heads * angle.cos().double()[:, None]
    wanted += torch.cat((-b, a), -1) * angle.sin().double()[:, None]
    close(packed[:, : 6 * width].reshape(tokens, 6, width), wanted)
    assert torch.equal(packed[:, 6 * width :], before[:, 6 * width :])
