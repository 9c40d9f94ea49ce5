"""Identity of the base model, to detect adapters that were trained for another one.

Shapes cannot tell, as a model and its fine-tunes share them. What tells is the fingerprint that a
package notes or, failing that, the name in its config. Names are weak evidence, so only deliberate
ones count: hub ids, and folder names that state the model's size, such as `Llama-3.1-8B`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath

from loramux_adapters.base import read_base
from loramux_adapters.errors import PackageError, shown
from loramux_adapters.fingerprint import fingerprint
from loramux_adapters.package import Package

_HUB_ID = re.compile(r"(\w[\w.-]*)/\w[\w.-]*")
_PLACES = frozenset({
    "base", "bases", "checkpoints", "ckpt", "ckpts", "data", "model", "models", "mnt", "out",
    "output", "outputs", "runs", "tmp", "weights",
})  # fmt: skip
"""Parent folders that make a path of two parts look like a hub id."""
_CACHED = re.compile(r"models--[\w.-]+?--([\w.-]+?)/snapshots/")
"""Where the cache of huggingface_hub keeps the model of a hub id."""
_SIZE = re.compile(r"(^|[-_.x])\d+(\.\d+)?[bm]($|[-_.])", re.IGNORECASE)
_FORMAT = re.compile(r"(-(unsloth|bnb|dynamic|[48]bit|int[48]|fp8|bf16|fp16|awq|gptq|hf))+$")
"""Suffix of a model's name that only tells in which format it was saved."""
_PARTS = frozenset({"model_type", "shapes", "weights"})
"""Parts of a fingerprint that identify a model regardless of its tokenizer."""


@dataclass(frozen=True)
class BaseIdentity:
    """What is known about which base model is served."""

    name: str = ""
    """Folder or hub id; empty if unknown."""

    def other(self, package: Package) -> str:
        """Return why `package` seems to be made for another base model; empty if nothing says so.

        The message shows only the last part of a path: uploaders need not know more.
        """
        noted = package.notes.get("base")
        if isinstance(noted, Mapping) and self._fingerprint and not _PARTS.isdisjoint(noted):
            found = self._fingerprint
            wrong = [part for part in _PARTS if noted.get(part, found[part]) != found[part]]
            others = ", ".join(sorted(wrong))
            return f"the fingerprint in its manifest has different {others}" if wrong else ""
        named, ours = (
            package.config.base_model,
            identifying_name(self.name, is_folder=self._is_folder),
        )
        theirs = identifying_name(named)
        if not (theirs and ours) or _plain(theirs) == _plain(ours):
            return ""
        return f"its config names the base model {shown(named)}, but this one is {shown(ours)}"

    @property
    def _is_folder(self) -> bool:
        return bool(self.name) and Path(self.name).is_dir()

    @cached_property
    def _fingerprint(self) -> Mapping[str, str]:
        """The folder's fingerprint; empty if it is no folder or cannot be read."""
        if not self._is_folder:
            return {}
        try:
            return fingerprint(read_base(Path(self.name)))
        except (OSError, PackageError):
            return {}


UNKNOWN = BaseIdentity()
"""A base model of which nothing is known."""


def identifying_name(name: str, *, is_folder: bool = False) -> str:
    """Return the last part of `name`, a folder or hub id, if it identifies a model; else empty.

    Args:
        name: Path or hub id, as a config or a command line has it.
        is_folder: Whether it is known not to be a hub id.
    """
    if cached := _CACHED.search(name):
        return cached[1]
    last = PurePath(name).name
    found = None if is_folder else _HUB_ID.fullmatch(name)
    is_hub_id = found is not None and found[1].lower() not in _PLACES
    return last if is_hub_id or _SIZE.search(last) else ""


def _plain(name: str) -> str:
    """Return `name` without the differences that two names of one model may have."""
    return _FORMAT.sub("", name.lower().replace("_", "-")).removeprefix("meta-")
