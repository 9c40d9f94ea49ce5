"""Punica's LoRA operators, as its models call them, from a checkout in which they were built.

`sgmv` shrinks, `sgmv_cutlass` expands, `add_lora_sgmv_custom_cutlass` does both (punica/ops). Each
is called once for every part of a group. Its bgmv is not compiled for a width of 14,336.

Written for the source of commit 591b598, the last one; not run, since it needs CUDA to build.

Legend: T tokens, K input width, R rank, S adapters, N output width of a part, P parts.
"""

from functools import partial
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.gpu.operands import LoraOperands
from benchmarks.gpu.operators import Operators, in_turn, stand_in
from benchmarks.gpu.padded import Padded

_LEAST_RANK = 16


class Punica:
    """Operators from a checkout or an installation."""

    def __init__(self, path: Path) -> None:
        folders = [folder for folder in (path, path / "src") if (folder / "punica/ops").is_dir()]
        if not folders:
            raise SystemExit(
                f"no punica/ops under {path} or {path / 'src'}: give a checkout of Punica, or the "
                "folder that its package lies in"
            )
        # The package itself imports models for a transformers version of its time.
        stand_in("punica", folders[0] / "punica")
        self._ops = import_module("punica.ops")

    def operators(self, operands: LoraOperands) -> Operators:
        """Return its operators on the values of `operands`, with B multiplied by the scale."""
        x_TK, ops = operands.x_TK, self._ops
        starts = torch.tensor(operands.borders, dtype=torch.int32, device=x_TK.device)
        y_PTN = [x_TK.new_zeros(len(x_TK), outputs) for outputs in operands.outputs]
        rank = max(_LEAST_RANK, *operands.ranks)
        h_PTR = [x_TK.new_zeros(len(x_TK), rank) for _ in operands.outputs]
        found = Operators([], [], [], [*h_PTR, *y_PTN], lambda: h_PTR, y_PTN)
        for slab in range(len(operands.slabs)):
            padded = Padded.of(operands, slab, rank)
            shrink, expand, both = [], [], []
            for h_TR, y_TN, a_SRK, b_SNR in zip(
                h_PTR, y_PTN, padded.a_PSRK, padded.b_PSNR, strict=True
            ):
                b_SRN = b_SNR.transpose(1, 2).contiguous()
                a_S, b_S = _addresses(a_SRK), _addresses(b_SRN)
                found.kept.extend((a_SRK, b_SRN))
                shrink.append(partial(ops.sgmv, h_TR, x_TK, a_S, starts, 0))
                expand.append(partial(ops.sgmv_cutlass, y_TN, h_TR, b_S, starts, 0))
                both.append(
                    partial(ops.add_lora_sgmv_custom_cutlass, y_TN, x_TK, a_S, b_S, starts, 0, rank)
                )
            found.shrink.append(in_turn(shrink))
            found.expand.append(in_turn(expand))
            found.both.append(in_turn(both))
        return found


def _addresses(weights: torch.Tensor) -> torch.Tensor:
    """Return the addresses of the weights of each adapter."""
    addresses = [weight.data_ptr() for weight in weights]
    return torch.tensor(addresses, dtype=torch.int64, device=weights.device)
