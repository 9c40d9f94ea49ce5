"""Where an adapter is that nobody registered: URIs with the tenant and the name in them."""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from loramux.errors import InvalidArgumentError
from loramux_server.sources.local import LocalFiles
from loramux_server.sources.policy import Opening, check_installed, open_uri
from loramux_server.store.reference import Reference

_PLACE = re.compile(r"\{([^{}]*)\}")
_EXAMPLE = Reference("tenant", "name")


class Templates:
    """The places of `--resolve`, in their order."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Check the templates.

        Raises:
            ValueError: One names no place for each adapter, or what is needed is not installed.
        """
        self._texts = tuple(texts)
        for text in self._texts:
            fields = set(_PLACE.findall(text))
            if "name" not in fields or not fields <= {"tenant", "name"}:
                raise ValueError(
                    f"{text!r} needs {{name}}, may have {{tenant}}, and nothing else in braces, "
                    "such as s3://bucket/{tenant}/{name} or /mnt/adapters/{name}"
                )
            scheme, _, place = text.rpartition("://")
            if scheme and "{name}" in place.partition("/")[0]:
                raise ValueError(
                    f"{text!r} lets callers choose the host, bucket or organisation; "
                    "{name} must come after it"
                )
            self._opening(text, _EXAMPLE)
            check_installed(text)

    def __bool__(self) -> bool:
        return bool(self._texts)

    def openings(self, adapter: Reference) -> list[Opening]:
        """Return what opens each place where `adapter` may be; nothing is asked before."""
        found: list[Opening] = []
        for text in self._texts:
            with suppress(InvalidArgumentError):  # nothing has such a name there, as a tag too long
                found.append(self._opening(text, adapter))
        return found

    def _opening(self, text: str, adapter: Reference) -> Opening:
        # Names have letters, digits, `-`, `_` and `.` between them: none leads elsewhere.
        place = text.replace("{tenant}", adapter.tenant).replace("{name}", adapter.name)
        if place.startswith("/"):
            return _local(Path(place))
        return open_uri(place)


def _local(path: Path) -> Opening:
    def opening(is_cancelled: Callable[[], bool]) -> LocalFiles:
        return LocalFiles(path)

    return opening
