"""Linear layers with frozen weights: every form against float64."""

import pytest
import torch

from loramux_server.kernels.linear import make_linear
from loramux_server.kernels.linear_cpu import LinearCpu, make_linear_cpu
from loramux_server.kernels.register_tile import PANEL
from loramux_server.kernels.resting import AT_REST, Quantization, at_rest, widened

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


@pytest.mark.parametrize("quantization", AT_REST)
@pytest.mark.parametrize(("width", "outputs"), [(64, 96), (5, 7), (33, 130)])
@pytest.mark.parametrize("form", FORMS)
def test_it_is_what_float64_gives_for_rounded_weights(
    form: str, width: int, outputs: int, quantization: Quantization
) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(outputs, width) / width**0.5, torch.randn(outputs)
    rounded = widened(*at_rest(weight, quantization))
    linear = FORMS[form](weight, bias, quantization)
    for count in (0, 1, 5, 33):
        x = torch.randn(count, width)
        wanted = x.double() @ rounded.double().T + bias.double()
        torch.testing.assert_close(linear(x).double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_was_saved_in_16_bits_rests_in_16_bits(dtype: torch.dtype) -> None:
    weight = (torch.randn(2 * PANEL, 24) / 5).to(dtype).float()
    linear = make_linear_cpu(weight, None)
    assert isinstance(linear, LinearCpu)
    assert linear.num_bytes == 2 * weight.numel()
    x = torch.randn(3, 24)
    wanted = (x.double() @ weight.double().T).float()
    torch.testing.assert_close(linear(x), wanted, rtol=1e-5, atol=1e-5)


def test_integers_are_off_by_half_a_step_at_most() -> None:
    weight = torch.randn(30, 50) * torch.logspace(-6, 3, 30)[:, None]
    weight[3] = 0
    values, scale = at_rest(weight, Quantization.INT8)
    assert values.dtype == torch.int8
    assert scale is not None
    error = (widened(values, scale) - weight).abs()
    assert (error <= 0.5001 * scale[:, None]).all()
