"""URI templates of `--resolve`: where to fetch an unregistered adapter by tenant and name."""

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
    """The templates of `--resolve`, in order."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Check the templates.

        Raises:
            ValueError: One lacks `{name}`, has an unknown field, lets callers choose the host, or
                does not make a URI; the latter is an InvalidArgumentError.
            MissingExtraError: One needs a package that is not installed.
        """
        self._texts = tuple(texts)
        for text in self._texts:
            fields = set(_PLACE.findall(text))
            if "name" not in fields or not fields <= {"tenant", "name"}:
                raise ValueError(
                    f"{text!r} is not valid; expected {{name}}, optionally {{tenant}}, and no "
                    "other braces, as in s3://bucket/{tenant}/{name} or /mnt/adapters/{name}"
                )
            scheme, _, place = text.rpartition("://")
            if scheme and "{name}" in place.partition("/")[0]:
                raise ValueError(
                    f"{text!r} lets callers choose the host, bucket or organization; "
                    "{name} must come after it"
                )
            self._opening(text, _EXAMPLE)
            check_installed(text)

    def __bool__(self) -> bool:
        return bool(self._texts)

    def openings(self, adapter: Reference) -> list[Opening]:
        """Return functions that open each place where `adapter` may be; see `Sources.find`."""
        found: list[Opening] = []
        for text in self._texts:
            with suppress(InvalidArgumentError):  # an impossible name there, such as a long tag
                found.append(self._opening(text, adapter))
        return found

    def _opening(self, text: str, adapter: Reference) -> Opening:
        # Names have letters and digits, with `-`, `_` and `.` only between: no path traversal.
        place = text.replace("{tenant}", adapter.tenant).replace("{name}", adapter.name)
        if place.startswith("/"):
            return _local(Path(place))
        return open_uri(place)


def _local(path: Path) -> Opening:
    def opening(is_cancelled: Callable[[], bool]) -> LocalFiles:
        return LocalFiles(path)

    return opening
