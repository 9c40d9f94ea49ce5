"""Where the kernels of a GPU run: on one, or in Triton's interpreter."""

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

IS_INTERPRETED = not torch.cuda.is_available()
if importlib.util.find_spec("triton") is None:  # there is none for macOS
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what a device alone can show: it is lent for minutes."""
    if not IS_INTERPRETED:
        items.sort(key=lambda item: item.path.name != "test_gpu_graphs.py")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if IS_INTERPRETED else "cuda")


@pytest.fixture(scope="session", autouse=IS_INTERPRETED)
def loops_over_tensors() -> None:
    """Let the interpreter of Triton 3.6 loop to a loaded number with numpy 2.4 or later.

    It asks an array of one dimension for an int, which numpy gives no more.
    """
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch


@pytest.fixture
def rows_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter multiply each row of a matrix as it does any other, as a GPU does.

    OpenBLAS adds in an order that depends on where in the matrix a row is.
    """
    if not IS_INTERPRETED:
        return
    from triton.runtime import interpreter

    def create_dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
        product = np.matmul(a.data[:, None], b.data, dtype=d.data.dtype)[:, 0]
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
