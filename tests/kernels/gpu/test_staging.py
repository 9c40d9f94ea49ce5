"""What a step tells the device: arrays in one piece of memory."""

import numpy as np
import torch

from loramux_server.kernels.gpu.staging import Staging


def test_arrays_arrive_and_begin_where_no_kernel_is_compiled_again(device: torch.device) -> None:
    shapes = {
        "odd": (torch.int32, (3,)),
        "wide": (torch.int64, (5,)),
        "table": (torch.int32, (2, 7)),
        "last": (torch.int32, (1,)),
    }
    staging = Staging(shapes, device)
    here = {}
    for step in range(3):
        here = staging.begin()
        for number, array in enumerate(here.values()):
            array[:] = np.arange(array.size).reshape(array.shape) + 100 * number + step
        staging.send()
    for name, (dtype, shape) in shapes.items():
        there = staging.on_device[name]
        assert (there.dtype, tuple(there.shape)) == (dtype, shape)
        assert there.data_ptr() % 16 == 0
        assert np.array_equal(there.cpu().numpy(), here[name])
