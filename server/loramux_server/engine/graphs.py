"""CUDA graphs: steps that the device replays without launches by the host."""

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import torch

from loramux_server.engine.out_of_memory import is_out_of_memory

Result = TypeVar("Result")
PLAIN_RUNS = 1
"""Eager steps of a key before it is captured: one that never recurs is not worth a graph."""
MOST_GRAPHS = 512
"""Most keys that are captured; a graph takes a megabyte or two."""
_log = logging.getLogger(__name__)


class Graphs(Generic[Result]):
    """One CUDA graph for each key of a step, captured when the key recurs.

    A graph replays the same kernels on the same memory, so all that differs between two steps of
    one key must be in memory that stays in place. On other devices than CUDA steps run eagerly.
    """

    def __init__(self, device: torch.device, *, is_used: bool = True) -> None:
        self._is_used = is_used and device.type == "cuda"
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Result]] = {}
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None
        """One stream for all captures: torch keeps tens of megabytes of workspace for good for each
        stream that runs matmuls."""
        self._runs = Counter[Hashable]()
        self._too_large: set[Hashable] = set()
        """Keys for whose graph there was no memory."""

    def run(self, key: Hashable, step: Callable[[], Result]) -> Result:
        """Run `step`, or replay the graph of an equal step, and return its result.

        The result of a step with a key is overwritten by the next one with any key.
        """
        if key is None or key in self._too_large or not self._is_used:
            return step()
        if key not in self._graphs:
            self._runs[key] += 1
            if self._runs[key] <= PLAIN_RUNS or len(self._graphs) >= MOST_GRAPHS:
                return step()
            try:
                self._record(key, step)
            except RuntimeError as error:
                if _lacks_memory(error):
                    _log.warning("not enough memory for a CUDA graph; such steps run eagerly")
                    self._too_large.add(key)
                else:
                    # A model may synchronize with the device within a step, as some rotary
                    # embeddings do.
                    _log.warning("CUDA graphs are turned off, steps run eagerly: %s", error)
                    self._is_used = False
                return step()
        graph, result = self._graphs[key]
        graph.replay()
        return result

    def _record(self, key: Hashable, step: Callable[[], Result]) -> None:
        # What the first run compiles or allocates must not be captured.
        before = torch.cuda.current_stream()
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream = self._stream
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            step()
        before.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Loads run meanwhile on threads of their own; they are not captured.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
            ):
                result = step()
        finally:
            torch.cuda.set_stream(before)  # if the capture fails, torch stays on its stream
        self._pool = self._pool or graph.pool()
        self._graphs[key] = graph, result


def _lacks_memory(error: BaseException | None) -> bool:
    """Return whether device memory ran out, perhaps before ending the capture failed."""
    while error is not None:
        if is_out_of_memory(error):
            return True
        error = error.__context__
    return False
