"""The parts of a load from disk, each timed alone, with the file in the page cache."""

import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from loramux_adapters import read_package
from loramux_server.lora.buffer_pool import BufferPool, PinnedMemory, buffer_size
from loramux_server.lora.streaming_file import Reader, Seals
from loramux_server.wire.adapter_source import AdapterSource

_RUNS = 5


class _Forgetful(Reader):
    """Knows only the given seal."""

    def is_right(self, source: AdapterSource, seal: str) -> bool:
        """Read a file as a load does, and return whether its content is verified."""
        _Forgetful.seals = Seals()
        with self.reading(Path(source.path), source.digest, seal) as file:
            return file.is_right()


def load_parts(source: AdapterSource, device: torch.device) -> dict[str, float]:
    """Return the milliseconds of each part, the minimum of five; GPU parts only with a GPU."""
    reader = _Forgetful()
    parts: dict[str, Callable[[], object]] = {
        "read, compared by the digest": lambda: reader.is_right(source, ""),
        "read, compared by the seal": lambda: reader.is_right(source, source.seal),
        "header parsed": lambda: _parse(Path(source.path)),
    }
    if device.type == "cuda":
        size, memory = source.num_bytes, PinnedMemory(device)
        made: list[Any] = []  # kept, or the next would reuse the memory
        buffers = BufferPool(memory, 2 * buffer_size(size))
        parts |= {
            "memory pinned by torch": lambda: made.append(torch.empty(size, pin_memory=True)),
            "buffer made": lambda: made.append(memory.make(buffer_size(size))),
            "buffer used again": lambda: buffers.take(size),
            "copied from a buffer": lambda: buffers.take(size).to(device),
        }
    return {name: 1e3 * min(_seconds(part) for _ in range(_RUNS)) for name, part in parts.items()}


def _parse(path: Path) -> None:
    with path.open("rb") as file:
        begin = file.read(8)
        header = begin + file.read(int.from_bytes(begin, "little"))
    read_package(BytesIO(header), path.stat().st_size)


def _seconds(part: Callable[[], object]) -> float:
    begin = time.perf_counter()
    part()
    return time.perf_counter() - begin
