"""vLLM's LoRA operators: lora_shrink and lora_expand of vllm/lora/ops/triton_ops.

Only their files are imported. vLLM's package would import much more, compiled for CUDA, so stubs
replace the modules around the operators; the launched kernels are the same.

Tried with vLLM 0.32.0 and 0.33.0, in Triton's interpreter.

Legend: T tokens, R rank, S adapters, N output width of a part, P parts.
"""

import inspect
import logging
import sys
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
import triton.language as tl

from benchmarks.gpu.operands import LoraOperands
from benchmarks.gpu.operators import Operators, in_turn, stand_in
from benchmarks.gpu.padded import Padded

_OPERATORS = "vllm.lora.ops.triton_ops"


class Vllm:
    """Operators from a checkout or an installation."""

    def __init__(self, path: Path) -> None:
        if not path.joinpath(*_OPERATORS.split(".")).is_dir():
            raise SystemExit(
                f"no {_OPERATORS.replace('.', '/')} under {path}: give a checkout of vLLM, or the "
                "folder that its package lies in"
            )
        _stand_ins(path)
        self._shrink = import_module(f"{_OPERATORS}.lora_shrink_op").lora_shrink
        self._expand = import_module(f"{_OPERATORS}.lora_expand_op").lora_expand
        self._meta = import_module(f"{_OPERATORS}.lora_kernel_metadata").LoRAKernelMeta
        self._utils = import_module(f"{_OPERATORS}.utils")

    def operators(self, operands: LoraOperands) -> Operators:
        """Return its operators on the values of `operands`, with B scaled as vLLM loads it."""
        self._forget_addresses()
        x_TK, num_adapters = operands.x_TK, len(operands.ranks)
        meta = self._meta.make(num_adapters, len(x_TK), device=x_TK.device)
        counts = torch.tensor(operands.borders).diff()
        mapping_T = torch.arange(num_adapters, dtype=torch.int32).repeat_interleave(counts)
        meta.prepare_tensors(mapping_T.to(x_TK.device))
        if "specialize_active_lora" in inspect.signature(meta.meta_args).parameters:
            described = meta.meta_args(len(x_TK), specialize_active_lora=True)
        else:
            described = meta.meta_args(len(x_TK))
        y_TN = torch.zeros_like(operands.y_TN)
        rank = max(operands.ranks)
        h_PTR = x_TK.new_zeros(len(operands.outputs), len(x_TK), rank, dtype=torch.float32)
        shrink: list[Callable[[], object]] = []
        expand: list[Callable[[], object]] = []
        for slab in range(len(operands.slabs)):
            padded = Padded.of(operands, slab)
            shrink.append(partial(self._shrink, x_TK, padded.a_PSRK, h_PTR, *described, 1.0))
            expand.append(
                partial(self._expand, h_PTR, padded.b_PSNR, y_TN, *described, add_inputs=True)
            )
        return Operators(
            shrink,
            expand,
            list(map(in_turn, zip(shrink, expand, strict=True))),
            [h_PTR, y_TN],
            lambda: list(h_PTR),
            y_TN.split_with_sizes(operands.outputs, 1),
        )

    def _forget_addresses(self) -> None:
        # It caches strides by address, and expects weights not to move.
        for name in ("_LORA_A_PTR_DICT", "_LORA_B_PTR_DICT"):
            getattr(self._utils, name, {}).clear()


def _stand_ins(path: Path) -> None:
    """Replace vLLM's modules that the operators import with stubs."""
    parts = _OPERATORS.split(".")
    for depth in range(1, len(parts) + 1):
        stand_in(".".join(parts[:depth]), path.joinpath(*parts[:depth]))
    # As without environment variables: all that are read are off by default.
    stand_in("vllm.envs", __getattr__=lambda _: None)
    sys.modules["vllm"].envs = sys.modules["vllm.envs"]  # type: ignore[attr-defined]
    logger = logging.getLogger("vllm")
    messages = {name: getattr(logger, name) for name in ("debug", "info", "warning", "error")}
    once = {f"{name}_once": cache(message) for name, message in messages.items()}
    stand_in("vllm.logger", init_logger=lambda _: SimpleNamespace(**messages, **once))
    stand_in(
        "vllm.platforms",
        current_platform=SimpleNamespace(
            is_cuda=torch.cuda.is_available,
            has_device_capability=lambda number: _capability() >= number,
            is_device_capability=lambda number: _capability() == number,
        ),
    )
    stand_in("vllm.triton_utils", triton=triton, tl=tl, HAS_TRITON=True)
    # A module in older versions, a package in newer ones.
    stand_in(
        "vllm.utils",
        path / "vllm" / "utils",
        direct_register_custom_op=_register,
        next_power_of_2=triton.next_power_of_2,
    )
    stand_in(
        "vllm.utils.torch_utils",
        direct_register_custom_op=_register,
        async_tensor_h2d=_to_device,
    )


def _capability() -> int:
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def _register(*_: object, **__: object) -> None:
    # The operators fall back to plain functions, so torch's dispatcher is not timed.
    raise AttributeError("operators are not registered here")


def _to_device(values: list[int], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=device)
