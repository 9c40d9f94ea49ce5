"""A second CUDA stream, for work that is independent of a concurrent matmul."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class SideStream:
    """Runs launches concurrently with the current stream; in order on devices other than CUDA."""

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def fork(self) -> Iterator[None]:
        """Launch the block's work on the side stream, after everything launched before it.

        Memory that the block allocates belongs to the side stream: torch does not give it to work
        on other streams.
        """
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """Make later launches on the current stream wait for the side stream."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
