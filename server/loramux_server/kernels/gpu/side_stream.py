"""A second stream, for what needs not wait for the matmul beside it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class SideStream:
    """Runs launches beside those of the current stream; elsewhere than on CUDA in their order."""

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def fork(self) -> Iterator[None]:
        """Launch what the block launches after all that was launched before it.

        What it allocates belongs to this stream: nothing that is launched outside gets its memory.
        """
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """Let what is launched from now on wait for what blocks have launched."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
