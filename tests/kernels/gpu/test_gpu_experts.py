"""A matrix of experts with adapters' changes: the kernels against the definition in float64."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loramux_server.kernels.experts import ExpertWeights, Pairs, multiply_experts
from loramux_server.kernels.gpu.experts import Blocks, multiply_experts_triton
from loramux_server.lora.edits import _moved
from loramux_server.lora.experts_edit import ExpertPiece, ExpertRows, rows_of
from loramux_server.lora.slab import DTYPES
from loramux_server.wire.weight_format import WeightFormat
from tests.kernels.gpu.dtypes import DTYPES as KINDS
from tests.parity.test_experts import base, configs
from tests.parity.test_methods import TOLERANCE, cases
from tests.parity.test_peft import check
from tests.support.adapters import Expected
from tests.support.engine import Harness
from tests.support.models import VOCAB

E = 5
pytestmark = pytest.mark.filterwarnings(
    "ignore::RuntimeWarning"  # numpy in the interpreter, of rows that stand for no token
)


def change(
    rank: int, widths: tuple[int, int], form: WeightFormat, *, number: int | None = None
) -> ExpertRows:
    count = E if number is None else 1
    a_ERK, b_ERN = (torch.randn(count, rank, width) * 0.3 for width in widths)
    return rows_of([ExpertPiece(a_ERK, b_ERN, 0.7, number=number)], E, widths, form, DTYPES[form])


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("widths", [(48, 40), (33, 17)], ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
def test_each_pair_has_its_expert_and_the_change_of_its_adapter(
    widths: tuple[int, int], dtype: torch.dtype, device: torch.device, *, has_bias: bool
) -> None:
    torch.manual_seed(0)
    own = next(form for form, kind in DTYPES.items() if kind is dtype)
    changes = [
        change(3, widths, own), None, change(35, widths, WeightFormat.FLOAT16),
        change(1, widths, own, number=2),
    ]  # fmt: skip
    weights = ExpertWeights(
        torch.randn(E, widths[1], widths[0]).to(device, dtype),
        torch.randn(E, widths[1]).to(device, dtype) if has_bias else None,
    )
    key_P = torch.sort(torch.randint(0, E * 5, (61,))).values.to(device)
    x_PK = torch.randn(61, widths[0]).to(device, dtype)
    there = [each and _moved(each, device) for each in changes]
    found = multiply_experts_triton(
        x_PK, weights, Pairs(key_P, 5), there, blocks=Blocks(rows=16, k=32, n=16)
    )
    wide = ExpertWeights(
        weights.weight_ENK.cpu().double(),
        None if weights.bias_EN is None else weights.bias_EN.cpu().double(),
    )
    wanted = multiply_experts(x_PK.cpu().double(), wide, Pairs(key_P.cpu(), 5), changes)
    tolerance = 1e-4 if dtype is torch.float32 else 0.1
    torch.testing.assert_close(found.cpu().double(), wanted, rtol=0.01, atol=tolerance)


def test_experts_in_one_batch_with_others_equal_peft(device: torch.device, tmp_path: Path) -> None:
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
    model = base("mixtral")
    requests = cases(model, tmp_path, configs())[:7]
    harness = Harness(
        copy.deepcopy(model).to(device), kernels="triton", rows=256, num_blocks=60,
        max_batch_tokens=48,
    )  # fmt: skip
    for case in requests:
        size = min(3, len(case.expected.tokens))
        harness.submit(case.prompt, case.source, max_tokens=size, num_logprobs=VOCAB)
    harness.run()
    assert not harness.failures
    for request_id, case in enumerate(requests):
        short = Expected(case.expected.tokens[:3], case.expected.logprobs[:3])
        check(harness, request_id, replace(case, expected=short), TOLERANCE)
    assert max(report.batch.adapters for report in harness.reports if report.batch) > 2
