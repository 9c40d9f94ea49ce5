"""Linear layers with frozen weights: every form against float64."""

import pytest
import torch

from loramux_server.kernels.linear import make_linear
from loramux_server.kernels.linear_cpu import make_linear_cpu

FORMS = {"definition": make_linear, "cpu": make_linear_cpu}


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("width", "outputs"), [(64, 96), (5, 7), (1536, 576)])
@pytest.mark.parametrize("form", FORMS)
def test_it_is_what_float64_gives_for_any_number_of_tokens(
    form: str, width: int, outputs: int, has_bias: bool
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(outputs, width) / width**0.5
    bias = torch.randn(outputs) if has_bias else None
    linear = FORMS[form](weight, bias)
    for count in (0, 1, 2, 3, 8, 17, 32, 33, 130, 512, 600):
        x = torch.randn(count, width)
        wanted = x.double() @ weight.double().T + (bias.double() if bias is not None else 0)
        torch.testing.assert_close(linear(x).double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_stays_half(form: str) -> None:
    x, weight = torch.randn(3, 32).bfloat16(), torch.randn(16, 32).bfloat16()
    assert FORMS[form](weight, None)(x).dtype == torch.bfloat16
