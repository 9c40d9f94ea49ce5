"""What packages contain besides weights: chat template, generation defaults, tokens, labels."""

import asyncio
import json
import os
import struct
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from loramux.errors import UnavailableError
from loramux_adapters import PackageError, read_package
from loramux_adapters.added_tokens import AddedToken, parse_added_tokens
from loramux_adapters.files import PASSING
from loramux_adapters.head import Task
from loramux_adapters.labels import Labels
from loramux_adapters.manifest import MANIFEST_KEY, parse_manifest
from loramux_adapters.tensorfile import PACKAGE
from loramux_server.wire.adapter_source import AdapterSource

KEPT = 4096
"""Packages whose settings are cached."""


@dataclass(frozen=True, slots=True)
class PackageSettings:
    """How a package wants to be used."""

    chat_template: str | None = None
    generation: Mapping[str, object] = field(default_factory=dict)
    """Field of the sampling parameters -> its default."""
    added_tokens: tuple[AddedToken, ...] = ()
    """Tokens that its tokenizer adds to the base's."""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """Template variable, such as `eos_token` -> the text of its token."""
    labels: Labels | None = None
    """The labels of its head's outputs; None if it has no such head."""
    embedding: Mapping[str, object] = field(default_factory=dict)
    """Its notes on how a text becomes one vector."""
    is_known: bool = True
    """Whether the package could be read."""


NONE = PackageSettings()
"""For the base model, and for packages that specify nothing."""
UNKNOWN = PackageSettings(is_known=False)
"""For packages that are damaged or missing."""


class PackageSettingsCache:
    """Reads and caches settings when an adapter is first used; for one event loop."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, PackageSettings] = OrderedDict()
        # Not the threads of uploads, because requests wait for this.
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="package-settings")

    async def of(self, source: AdapterSource) -> PackageSettings:
        """Return the settings of a package, on whose file the caller holds a lease.

        For a damaged or missing package that is UNKNOWN; loading it will report the error.

        Raises:
            UnavailableError: It cannot be read at present.
        """
        known = self._known.get(source.digest)
        if known is None:
            loop = asyncio.get_running_loop()
            try:
                known = await loop.run_in_executor(self._readers, _read, Path(source.path))
            except OSError as error:
                if error.errno not in PASSING:
                    return UNKNOWN
                raise UnavailableError(
                    f"the stored adapter cannot be read at present: {error.strerror}",
                    reason="STORE_UNAVAILABLE",
                    field="adapter",
                ) from error
            if not known.is_known:
                return known
            self._known[source.digest] = known
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(source.digest)
        return known


def _read(path: Path) -> PackageSettings:
    """Return the settings of the package at `path`.

    Raises:
        OSError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, PACKAGE.num_bytes)))
            manifest = parse_manifest(header["__metadata__"][MANIFEST_KEY])
            labels = None
            if manifest.peft_config.get("task_type") in (Task.SEQUENCE, Task.TOKENS):
                labels = read_package(file, os.fstat(file.fileno()).st_size).labels
        notes = manifest.notes
        added = parse_added_tokens(cast(list[object], notes.get("added_tokens", [])), "the package")
    except (ValueError, KeyError, TypeError, struct.error, PackageError):
        return UNKNOWN
    template, generation = notes.get("chat_template"), notes.get("generation")
    special, embedding = notes.get("special_tokens"), notes.get("embedding")
    found = PackageSettings(
        template if isinstance(template, str) else None,
        generation if isinstance(generation, dict) else {},
        added,
        special if isinstance(special, dict) else {},
        labels,
        embedding if isinstance(embedding, dict) else {},
    )
    return NONE if found == NONE else found
