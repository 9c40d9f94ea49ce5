"""Allowlist of the sources that adapters may be imported from; empty by default."""

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
    """Opens an allowed URI. Blocks."""

    def __call__(self, is_cancelled: Callable[[], bool]) -> Snapshot:
        """Return the adapter there now; slow sources check `is_cancelled` and give up."""


class MissingExtraError(Exception):
    """A source is allowed, but a Python package that it needs is not installed."""


class Sources:
    """The allowlist."""

    def __init__(
        self,
        hub_allow: Sequence[str] = (),
        object_allow: Sequence[str] = (),
        oci_allow: Sequence[str] = (),
    ) -> None:
        """Allow repositories by pattern, and objects by URI prefix.

        Args:
            hub_allow: Patterns of hub repositories, `ORG/NAME`.
            object_allow: URI prefixes of object stores.
            oci_allow: Patterns of OCI repositories, `HOST/REPOSITORY`.

        Raises:
            InvalidArgumentError: A prefix is not valid for an object.
            MissingExtraError: An allowed source needs a package that is not installed.
        """
        self._hub_allow = tuple(hub_allow)
        self._oci_allow = tuple(pattern.removeprefix("oci://") for pattern in oci_allow)
        # Checked with a name appended, since a prefix may be a whole bucket.
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
        """Return a function that opens `uri`; the source is not contacted before.

        Raises:
            InvalidArgumentError: It is not a URI of a known source.
            PermissionDeniedError: It is not allowed.
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
    """Return a function that opens `uri`, whether or not it is allowed; see `Sources.find`.

    Raises:
        InvalidArgumentError: It is not a URI of a known source.
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
    """Check that the package which reads from `uri` is installed.

    Raises:
        MissingExtraError: It is not.
    """
    if uri.startswith(("s3://", "gs://", "az://")) and not importlib.util.find_spec("obstore"):
        raise MissingExtraError(f"needs obstore: {install_command('objects')}")
    if uri.startswith("oci://") and not importlib.util.find_spec("requests"):
        raise MissingExtraError(f"needs requests: {install_command('oci')}")


def _not_allowed(uri: str, flag: str, value: str) -> PermissionDeniedError:
    """Return the error for a URI that `flag` with `value` would allow."""
    return PermissionDeniedError(
        f"{uri} is not allowed here; to allow it, start the server with "
        f"{flag} {shlex.quote(value)} in addition",
        reason="SOURCE_NOT_ALLOWED",
        field="uri",
    )
