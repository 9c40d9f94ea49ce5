"""What counts as having no more memory, and what an engine says then."""

import socket

import pytest
import torch

from loramux_server.engine.out_of_memory import exit_on_out_of_memory, is_out_of_memory
from loramux_server.wire.channel import read_message
from loramux_server.wire.messages import OutOfMemory, decode_from_engine


def test_errors_of_python_and_of_torch_count() -> None:
    with pytest.raises(RuntimeError) as of_the_host:
        torch.empty(1 << 60, dtype=torch.uint8)
    said = (
        "CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "Triton Error [CUDA]: out of memory",
    )
    of_a_device = [torch.OutOfMemoryError("CUDA out of memory"), *map(RuntimeError, said)]
    for error in (MemoryError(), of_the_host.value, *of_a_device):
        assert is_out_of_memory(error), error
    # A descriptor table can be full, too: that is no lack of memory.
    others: tuple[Exception, ...] = (RuntimeError("shapes differ"), OSError(24, "Too many files"))
    for other in others:
        assert not is_out_of_memory(other), other


def test_the_other_side_learns_it_before_the_process_ends() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(SystemExit) as ended, exit_on_out_of_memory(theirs):
            raise MemoryError
        assert ended.value.code == 1
        reported = read_message(ours)
    assert reported is not None
    assert decode_from_engine(reported) == OutOfMemory()


def test_other_errors_are_not_spoken_of() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs, pytest.raises(ZeroDivisionError), exit_on_out_of_memory(theirs):
            raise ZeroDivisionError
        assert read_message(ours) is None
