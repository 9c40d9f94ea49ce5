"""Kernels as Triton compiles them, which its interpreter does not show."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any


def test_every_kernel_compiles_for_a_gpu(tmp_path: Path) -> None:
    """Those that add a low-rank change multiply matrices only for tiles that adapters change."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    environment.pop("TRITON_INTERPRET", None)
    environment["TRITON_CACHE_DIR"] = str(tmp_path)

    def lines(part: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.compile_kernels", part],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    with ThreadPoolExecutor(2) as pool:
        kernels = [json.loads(line) for line in chain(*pool.map(lines, ["1/2", "2/2"]))]
    assert {kernel["name"] for kernel in kernels} == {
        "_shrink", "_expand", "_rope_write", "_silu_mul", "_residual_norm", "_rms_norm",
        "_attend_shares", "_attend_tiles", "_write_cache", "_shrink_experts", "_expand_experts",
        "weigh", "narrow", "settle", "pick",
    }  # fmt: skip
    layers = [kernel for kernel in kernels if kernel["tile"]]
    assert all(_multiplies(kernel) == kernel["has_mma"] for kernel in layers)


def _multiplies(kernel: dict[str, Any]) -> bool:
    """Return whether it has tiles for a matrix product: one with a row for itself has none."""
    has_tile = kernel["tile"] > 1 and kernel["name"] != "_residual_norm"
    return bool(kernel["has_adapter"] and (has_tile or kernel["name"] == "_shrink"))
