"""What models compute in, where the kernels of a GPU are tested."""

import pytest
import torch

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DTYPES = [
    pytest.param(torch.float32, id="float32"),
    pytest.param(torch.float16, id="float16"),
    # Triton's interpreter multiplies the bits of bfloat16 as integers.
    pytest.param(torch.bfloat16, id="bfloat16", marks=[pytest.mark.gpu, needs_gpu]),
]
