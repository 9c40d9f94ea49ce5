"""Where the kernels of a GPU run: on one, or in Triton's interpreter."""

import os
from typing import Any

import pytest
import torch

IS_INTERPRETED = not torch.cuda.is_available()
if IS_INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when a kernel is defined.


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
