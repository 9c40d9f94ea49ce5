"""Adapters as packages, and their updates as matrices."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from loramux_adapters import Package, open_package, read_package
from loramux_adapters.weights.update import read_updates
from tests.adapters.files import CONFIG, Tensors

Matrix = npt.NDArray[np.float64]


def opened(stack: ExitStack, *paths: Path) -> list[tuple[BinaryIO, Package]]:
    """Open packages or PEFT folders until `stack` ends."""
    return [stack.enter_context(open_package(path)) for path in paths]


def deltas(file: BinaryIO) -> dict[str, Matrix]:
    """Return scale * B A of each module of the package in `file`."""
    size = file.seek(0, 2)
    return {
        update.module: update.scale * update.b_OR.astype(np.float64) @ update.a_RI
        for update in read_updates(file, read_package(file, size))
    }


def deltas_of_peft(model: PeftModel, adapter: str) -> dict[str, Matrix]:
    """Return what `adapter` of PEFT adds to the weight of each of its layers."""
    return {
        name: layer.get_delta_weight(adapter).detach().double().numpy()
        for name, layer in model.base_model.model.named_modules()
        if isinstance(layer, LoraLayer) and adapter in layer.lora_A
    }


def assert_close(found: dict[str, Matrix], expected: dict[str, Matrix], tolerance: float) -> None:
    """Demand the same modules, each as near as `tolerance` times its largest entry."""
    assert found.keys() == expected.keys()
    for name, matrix in expected.items():
        np.testing.assert_allclose(
            found[name], matrix, rtol=0, atol=tolerance * np.abs(matrix).max(), err_msg=name
        )


SOUND = CONFIG | {"base_model_name_or_path": "org/base", "r": 4, "lora_alpha": 8}
Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"


def random_pair(module: str = Q, seed: int = 0, rank: int = 4, **halves: Any) -> Tensors:
    """Return random A and B of `module`, with `a` or `b` in their place if given."""
    random = np.random.default_rng(seed)
    made = {"A": random.normal(size=(rank, 8)), "B": random.normal(size=(6, rank))}
    made |= {half.upper(): array for half, array in halves.items()}
    return {
        f"base_model.model.{module}.lora_{half}.weight": (
            "F32", list(array.shape), np.asarray(array, "<f4").tobytes(),
        )
        for half, array in made.items()
    }  # fmt: skip
