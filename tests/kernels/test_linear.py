"""Linear layers with frozen weights: every form against float64."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from loramux_server.kernels.cpu.linear import LinearCpu, make_linear_cpu, make_saved_linear_cpu
from loramux_server.kernels.cpu.parallel import without_team
from loramux_server.kernels.cpu.register_tile import MAX_ROWS, PANEL
from loramux_server.kernels.linear import make_linear
from loramux_server.kernels.saved_linear import make_saved_linear
from loramux_server.kernels.weight_storage import (
    SUPPORTED_QUANTIZATIONS,
    Quantization,
    quantize,
    widened,
)

FORMS = {"definition": make_linear, "cpu": make_linear_cpu}
SAVED_FORMS = {"definition": make_saved_linear, "cpu": make_saved_linear_cpu}


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


@pytest.mark.parametrize("quantization", SUPPORTED_QUANTIZATIONS)
@pytest.mark.parametrize(("width", "outputs"), [(64, 96), (5, 7), (33, 130)])
@pytest.mark.parametrize("form", FORMS)
def test_it_is_what_float64_gives_for_rounded_weights(
    form: str, width: int, outputs: int, quantization: Quantization
) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(outputs, width) / width**0.5, torch.randn(outputs)
    rounded = widened(*quantize(weight, quantization))
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
    assert linear.nbytes == 2 * weight.numel()
    x = torch.randn(3, 24)
    wanted = (x.double() @ weight.double().T).float()
    torch.testing.assert_close(linear(x), wanted, rtol=1e-5, atol=1e-5)


def test_integers_are_off_by_half_a_step_at_most() -> None:
    weight = torch.randn(30, 50) * torch.logspace(-6, 3, 30)[:, None]
    weight[3] = 0
    values, scale = quantize(weight, Quantization.INT8)
    assert values.dtype == torch.int8
    assert scale is not None
    error = (widened(values, scale) - weight).abs()
    assert (error <= 0.5001 * scale[:, None]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("width", "outputs"), [(64, 96), (5, 7), (33, 2100)])
@pytest.mark.parametrize("form", SAVED_FORMS)
def test_a_saved_weight_rests_in_its_own_format_and_is_exact(
    form: str, width: int, outputs: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(outputs, width) / width**0.5).to(dtype).float()
    linear = SAVED_FORMS[form](weight, dtype)
    padded = -(-outputs // PANEL) * PANEL if form == "cpu" else outputs
    assert linear.nbytes == dtype.itemsize * padded * width
    for count in (0, 1, 5, 33):
        x = torch.randn(count, width)
        y = linear(x)
        assert y.dtype == torch.float32
        wanted = x.double() @ weight.double().T
        torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", SAVED_FORMS)
def test_a_saved_weight_of_a_base_in_16_bits_is_multiplied_in_these(form: str) -> None:
    x, weight = torch.randn(3, 32).bfloat16(), torch.randn(16, 32).bfloat16()
    linear = SAVED_FORMS[form](weight, weight.dtype)
    assert torch.equal(linear(x), torch.nn.functional.linear(x, weight))


def test_panels_that_are_half_full_are_no_narrower_for_who_has_more_threads() -> None:
    """A load has one thread, and a step has them all."""
    weight, x = torch.randn(PANEL + 1, 4096), torch.randn(3, 4096)
    with ThreadPoolExecutor(1, initializer=without_team) as loads:
        linear = loads.submit(make_saved_linear_cpu, weight, torch.float32).result()
        one_thread = loads.submit(linear, x).result()
    assert isinstance(linear, LinearCpu)
    assert torch.equal(linear(x), one_thread)
    assert len(linear._scratch) == torch.get_num_threads() * MAX_ROWS * PANEL
    assert linear._job[0]["scratch"] == linear._scratch.data_ptr()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_panels_of_16_bits_give_what_the_same_weights_give_in_float32(dtype: torch.dtype) -> None:
    weight = (torch.randn(200, 300) / 17).to(dtype).float()
    narrow, wide = (make_saved_linear_cpu(weight, form) for form in (dtype, torch.float32))
    for count in (1, 2, 7, 40):
        x = torch.randn(count, 300)
        assert torch.equal(narrow(x), wide(x))
