"""The CPU backend."""

from functools import partial

from loramux_server.kernels.backend import Backend
from loramux_server.kernels.cpu.add_lora import AddLoraCpu
from loramux_server.kernels.cpu.attention import PagedAttentionCpu
from loramux_server.kernels.cpu.decoder import make_decoder_cpu
from loramux_server.kernels.cpu.delta_rule import DeltaRuleCpu
from loramux_server.kernels.cpu.expand import FEW
from loramux_server.kernels.cpu.linear import make_linear_cpu, make_saved_linear_cpu
from loramux_server.kernels.cpu.pointwise import RmsNormCpu, RotateCpu, SiluMulCpu
from loramux_server.kernels.cpu.row_attention import RowAttentionCpu
from loramux_server.kernels.cpu.state_space import StateSpaceCpu
from loramux_server.kernels.cpu.write_cache import WriteCacheCpu
from loramux_server.kernels.experts import multiply_experts
from loramux_server.kernels.projection import project
from loramux_server.kernels.weight_storage import Quantization


def make_cpu_backend(quantization: Quantization, *, is_deterministic: bool) -> Backend:
    """Return the CPU backend, which stores base weights according to `quantization`.

    With `is_deterministic` it sums in the same order for every number of tokens.
    """
    few = 0 if is_deterministic else FEW
    add_lora = AddLoraCpu(few)
    return Backend(
        "cpu", partial(make_linear_cpu, quantization=quantization), add_lora, project,
        WriteCacheCpu(), PagedAttentionCpu(), RmsNormCpu(), SiluMulCpu(), RotateCpu(),
        partial(make_decoder_cpu, few=few), make_saved_linear=make_saved_linear_cpu,
        multiply_experts=partial(multiply_experts, add_lora=add_lora),
        delta_rule=DeltaRuleCpu(), state_space=StateSpaceCpu(),
        row_attention=None if is_deterministic else RowAttentionCpu(), takes_experts=True,
        is_deterministic=is_deterministic,
    )  # fmt: skip
