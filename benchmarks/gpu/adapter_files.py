"""Adapter files: one with random weights per kind, and copies that differ from it in one weight."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import torch
from blake3 import blake3

from benchmarks.fixture import Shape, make_adapters
from benchmarks.local_engine import packaged
from loramux_server.wire.adapter_source import AdapterSource

_LAST_BYTES = 2
"""Number of bytes in which the files of a kind differ: one weight, or half of one."""
_COPIERS = 8


class AdapterFiles:
    """Creates missing adapters when they are first used."""

    def __init__(
        self, folder: Path, shape: Shape, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Create adapters for `shape` in `folder`, saved in `dtype`; `device` draws numbers."""
        self._folder = folder
        self._shape = shape
        self._dtype = str(dtype).removeprefix("torch.")
        self._device = str(device)
        self._made: dict[str, list[AdapterSource]] = {}

    def sources(self, rank: int, count: int, *, use_dora: bool = False) -> list[AdapterSource]:
        """Return `count` adapters of `rank`, each in its own file."""
        kind = f"{'dora' if use_dora else 'lora'}-{rank}"
        if kind not in self._made:
            folder = self._folder / kind
            make_adapters(
                folder, self._shape, [rank], 1, dtype=self._dtype, use_dora=use_dora,
                device=self._device,
            )  # fmt: skip
            self._made[kind] = packaged(folder)
        made = self._made[kind]
        made += _others(made[0], range(len(made), count))
        return made[:count]

    def peft_folder(self, rank: int) -> Path:
        """Return PEFT's folder of the LoRA of `rank`."""
        self.sources(rank, 1)
        return self._folder / f"lora-{rank}" / "a0000"


def _others(source: AdapterSource, numbers: Sequence[int]) -> list[AdapterSource]:
    """Return copies of `source` whose last bytes are these numbers, so that all differ."""
    if not numbers:
        return []
    content = Path(source.path).read_bytes()[:-_LAST_BYTES]
    hashes = hashlib.sha256(content), blake3(content)  # of the part that is the same in all of them

    def another(number: int) -> AdapterSource:
        path = Path(source.path).with_suffix(f".{number}.package")
        last = number.to_bytes(_LAST_BYTES, "little")
        shutil.copyfile(source.path, path)
        with path.open("r+b") as file:
            file.seek(-_LAST_BYTES, os.SEEK_END)
            file.write(last)
        digest, seal = (hashed.copy() for hashed in hashes)
        for whole in (digest, seal):
            whole.update(last)
        return msgspec.structs.replace(
            source,
            digest=f"sha256:{digest.hexdigest()}",
            seal=f"blake3:{seal.hexdigest()}",
            path=str(path),
        )

    with ThreadPoolExecutor(_COPIERS) as pool:
        return list(pool.map(another, numbers))
