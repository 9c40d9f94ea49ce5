"""From where adapters may be imported: nowhere, unless the operator says so."""

import importlib.util
import shlex
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Protocol

from loramux.errors import PermissionDeniedError
from loramux_adapters.extras import install_command
from loramux_server.sources.hub import HubFiles, parse_uri
from loramux_server.sources.objects import Objects, check_uri
from loramux_server.sources.oci import OciFiles
from loramux_server.sources.oci import parse_uri as parse_oci_uri
from loramux_server.sources.snapshot import Snapshot, not_a_uri


class Opening(Protocol):
    """Looks what is at a URI that is allowed. Blocks."""

    def __call__(self, is_cancelled: Callable[[], bool]) -> Snapshot:
        """Return what is there now; where that may take long, ask whether the caller gave up."""


class MissingExtraError(Exception):
    """A source is allowed for which a package is missing."""


class Sources:
    """What may be imported."""

    def __init__(
        self,
        hub_allow: Sequence[str] = (),
        object_allow: Sequence[str] = (),
        oci_allow: Sequence[str] = (),
    ) -> None:
        """Allow repositories by pattern, and objects by the beginning of their URI.

        Args:
            hub_allow: Of the hub, as `ORG/NAME`.
            object_allow: Of object stores.
            oci_allow: Of registries, as `HOST/REPOSITORY`.

        Raises:
            InvalidArgumentError: A beginning is none that an object could have.
            MissingExtraError: What is allowed needs a package that is not installed.
        """
        self._hub_allow = tuple(hub_allow)
        self._oci_allow = tuple(pattern.removeprefix("oci://") for pattern in oci_allow)
        # With a name behind it, since a whole bucket may be allowed.
        self._object_allow = [
            check_uri(f"{prefix.rstrip('/')}/x").removesuffix("x") for prefix in object_allow
        ]
        for flag, places, scheme in (
            ("--object-allow", object_allow, "s3://"), ("--oci-allow", oci_allow, "oci://")
        ):  # fmt: skip
            try:
                if places:
                    check_installed(scheme)
            except MissingExtraError as error:
                raise MissingExtraError(f"{flag}: {error}") from None

    def find(self, uri: str) -> Opening:
        """Return what opens `uri`; nothing is asked of its source before.

        Raises:
            InvalidArgumentError: It is no URI of a known source.
            PermissionDeniedError: Nothing may be imported from there.
        """
        opening = open_uri(uri)
        match uri.partition("://")[0]:
            case "hf":
                flag, place, patterns = "--hub-allow", parse_uri(uri).repo, self._hub_allow
            case "oci":
                named = parse_oci_uri(uri)
                flag, patterns = "--oci-allow", self._oci_allow
                place = f"{named.host}/{named.repository}"
            case _:
                place = check_uri(uri)
                if any(place.startswith(prefix) for prefix in self._object_allow):
                    return opening
                raise _not_allowed(uri, "--object-allow", place.rpartition("/")[0])
        if any(fnmatchcase(place, pattern) for pattern in patterns):
            return opening
        raise _not_allowed(uri, flag, f"{place.rpartition('/')[0]}/*")


def open_uri(uri: str) -> Opening:
    """Return what opens `uri`, whoever may; nothing is asked of its source before.

    Raises:
        InvalidArgumentError: It is no URI of a known source.
    """
    scheme, separator, _ = uri.partition("://")
    if separator and scheme == "hf":
        parsed = parse_uri(uri)
        return lambda is_cancelled: HubFiles(parsed)
    if separator and scheme in ("s3", "gs", "az"):
        checked = check_uri(uri)
        return lambda is_cancelled: Objects(checked)
    if separator and scheme == "oci":
        return partial(OciFiles, parse_oci_uri(uri))
    raise not_a_uri(uri, "one that begins with hf://, s3://, gs://, az:// or oci://")


def check_installed(uri: str) -> None:
    """Demand that what reads from such a URI is installed.

    Raises:
        MissingExtraError: It is not.
    """
    if uri.startswith(("s3://", "gs://", "az://")) and not importlib.util.find_spec("obstore"):
        raise MissingExtraError(f"needs obstore: {install_command('objects')}")
    if uri.startswith("oci://") and not importlib.util.find_spec("requests"):
        raise MissingExtraError(f"needs requests: {install_command('oci')}")


def _not_allowed(uri: str, flag: str, value: str) -> PermissionDeniedError:
    """Return the error for a URI that `flag` would allow with `value`."""
    return PermissionDeniedError(
        f"{uri} may not be imported here; to allow it, start the server with "
        f"{flag} {shlex.quote(value)} as well",
        reason="SOURCE_NOT_ALLOWED",
        field="uri",
    )
