"""Adapters in object stores: `s3://`, `gs://` and `az://`, through obstore.

obstore takes credentials, endpoints and timeouts from the environment, for example AWS_REGION; the
default timeout is 30 s.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from loramux_server.sources.snapshot import (
    OPTIONAL,
    PACKAGE_SUFFIX,
    REQUIRED,
    changed,
    not_a_uri,
    not_found,
    not_readable,
    unavailable,
)

if TYPE_CHECKING:
    from obstore import ObjectMeta

CHUNK_BYTES = 8 << 20
"""Bytes per range request."""
_RETRY = {"max_retries": 3}
# No percent signs: the URI that a store decodes must equal the one that the policy compared.
_URI = re.compile(r"(?:s3|gs|az)://[A-Za-z0-9._-]+(?:/[A-Za-z0-9._=+@,~!-]+)+")


def check_uri(uri: str) -> str:
    """Return the URI of an object or a folder, without trailing slashes.

    Raises:
        InvalidArgumentError: It is not a valid URI.
    """
    uri = uri.rstrip("/")
    if not _URI.fullmatch(uri) or {".", ".."} & set(uri.split("/")):
        raise not_a_uri(
            uri, "s3://, gs:// or az:// with a bucket and the path of a package or a PEFT folder"
        )
    return uri


class Objects:
    """One package, or the files of a PEFT folder, in an object store."""

    def __init__(self, uri: str) -> None:
        """List the objects at `uri`, which `check_uri` has checked.

        Raises:
            NotFoundError: There is no adapter.
            FailedPreconditionError: The server may not read it.
            UnavailableError: The store does not answer.
        """
        from obstore.store import from_url

        self.origin = uri
        is_package = uri.endswith(PACKAGE_SUFFIX)
        folder, _, name = uri.rpartition("/") if is_package else (uri, "", "")
        with self._errors():
            options: Any = {"retry_config": _RETRY}
            self._store: Any = from_url(folder, **options)
        self._found = self._look_at((name,) if is_package else REQUIRED, is_required=True)
        if not is_package:
            self._found |= self._look_at(OPTIONAL, is_required=False)
        self.sizes: Mapping[str, int] = {name: meta["size"] for name, meta in self._found.items()}

    def read(self, name: str) -> Iterator[bytes]:
        """Yield the chunks of an object; see `Snapshot.read`."""
        import obstore

        size, tag = self.sizes[name], self._found[name]["e_tag"]
        for begin in range(0, size, CHUNK_BYTES):
            options: Any = {"range": (begin, min(begin + CHUNK_BYTES, size))}
            if tag:
                options["if_match"] = tag
            with self._errors():
                chunk = bytes(obstore.get(self._store, name, options=options).bytes())
            yield chunk

    def _look_at(self, names: tuple[str, ...], *, is_required: bool) -> dict[str, "ObjectMeta"]:
        import obstore
        from obstore.exceptions import NotFoundError as MissingError

        found = {}
        for name in names:
            with self._errors():
                try:
                    found[name] = obstore.head(self._store, name)
                except (FileNotFoundError, MissingError):
                    if is_required:
                        raise not_found(self.origin, f"there is no {name}") from None
        return found

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Convert errors of the store to ours, without their text."""
        from obstore import exceptions

        try:
            yield
        except exceptions.PreconditionError:
            raise changed(self.origin) from None
        except (PermissionError, exceptions.PermissionDeniedError, exceptions.UnauthenticatedError):
            raise not_readable(self.origin) from None
        except exceptions.BaseError as error:
            raise unavailable(self.origin, type(error).__name__) from error
