"""Adapters in OCI registries: `oci://HOST/REPOSITORY[:TAG]`, or `@sha256:…`.

An artifact holds the files of a PEFT folder, or one package, in either layout: each file as a named
layer of its own (`oras push`, ModelPack's raw layers), or within layers that are tar archives, in
any folder of the image (`docker build`, KServe's modelcars, KitOps' ModelKits).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from loramux_adapters.errors import shown
from loramux_server.sources.archive import ArchiveError, members
from loramux_server.sources.image_layers import Layers
from loramux_server.sources.snapshot import (
    OPTIONAL,
    PACKAGE_SUFFIX,
    REQUIRED,
    not_a_uri,
    not_found,
    not_readable,
    unavailable,
)

_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*(?::\d{{1,5}})?"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_URI = re.compile(
    rf"oci://(?P<host>{_HOST})/(?P<repository>{_PART}(?:/{_PART})*)"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64})|:(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
)
_TITLES = ("org.opencontainers.image.title", "org.cncf.model.filepath")
"""Annotations that name a layer's file. The second, ModelPack's, is also set on archives."""
_ARCHIVE = re.compile(r"[.+]tar(?P<packing>[.+](?:gzip|zstd))?$")
"""Media types of archives. An uncompressed one with a title is a plain file, as ORAS pushes it."""


@dataclass(frozen=True, slots=True)
class OciUri:
    """A parsed `oci://` URI."""

    host: str
    """Includes the port, if there is one."""
    repository: str
    reference: str
    """A tag or a digest."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a file is stored."""

    layer: str
    """Digest of the blob."""
    number: int
    """Index of the file in the archive, from 0; -1 if the blob is the file itself."""
    size: int


def parse_uri(uri: str) -> OciUri:
    """Parse `uri`.

    Raises:
        InvalidArgumentError: It is not a valid OCI URI.
    """
    found = _URI.fullmatch(uri)
    if not found:
        raise not_a_uri(uri, "oci://HOST/REPOSITORY[:TAG] or oci://HOST/REPOSITORY@sha256:DIGEST")
    return OciUri(found["host"], found["repository"], found["digest"] or found["tag"] or "latest")


class OciFiles:
    """One package, or the files of a PEFT folder, in one artifact."""

    def __init__(self, uri: OciUri, is_cancelled: Callable[[], bool] = lambda: False) -> None:
        """List the files of an artifact, which requires reading its archives once.

        Args:
            uri: The artifact.
            is_cancelled: Whether the caller has given up.

        Raises:
            CancelledError: The caller has given up.
            NotFoundError: The artifact does not exist, or has no adapter.
            FailedPreconditionError: The registry refuses the server's credentials.
            UnavailableError: The registry does not answer.
        """
        from loramux_server.sources.registry import Registry, layers_of

        self._registry = Registry(uri.host, uri.repository, is_cancelled)
        at = "@" if ":" in uri.reference else ":"
        self.origin = f"oci://{uri.host}/{uri.repository}{at}{uri.reference}"
        with self._errors():
            digest, manifest = self._registry.manifest(uri.reference)
            self.origin = f"oci://{uri.host}/{uri.repository}@{digest}"
            there = Layers[_Place]()
            for layer in reversed(layers_of(manifest)):
                there.add_below(self._files(layer))
        self._chosen = self._choose(there.files)
        self.sizes: Mapping[str, int] = {name: place.size for name, place in self._chosen.items()}

    def read(self, name: str) -> Iterator[bytes]:
        """Yield the chunks of a file; see `Snapshot.read`."""
        place = self._chosen[name]
        with self._errors():
            if place.number < 0:
                yield from self._registry.blob(place.layer)
                return
            for number, member in enumerate(members(self._registry.blob(place.layer))):
                if number == place.number:
                    yield from member.chunks

    def _files(self, layer: Mapping[str, Any]) -> dict[str, _Place]:
        """Return the files of a layer, by path."""
        from loramux_server.sources.registry import RegistryError, digest_in

        digest, size = digest_in(layer), layer.get("size")
        notes = layer.get("annotations")
        notes = notes if isinstance(notes, dict) else {}
        archive = _ARCHIVE.search(str(layer.get("mediaType")))
        if archive and (archive["packing"] or _TITLES[0] not in notes):
            return {
                member.path: _Place(digest, number, member.size)  # the last one of a path wins
                for number, member in enumerate(members(self._registry.blob(digest)))
            }
        if not isinstance(size, int) or size < 0:
            raise RegistryError("a descriptor has no size")
        for title in _TITLES:
            if isinstance(path := notes.get(title), str):
                return {path: _Place(digest, -1, size)}
        return {}  # a config, or a tool's own format

    def _choose(self, paths: Mapping[str, _Place]) -> dict[str, _Place]:
        """Return the files that make up the adapter, by name."""
        config, tensors = REQUIRED
        folders = [path.removesuffix(config) for path in paths if f"/{path}".endswith(f"/{config}")]
        folders = [folder for folder in folders if folder + tensors in paths]
        if len(folders) > 1:
            raise not_found(self.origin, f"there is more than one adapter, in {_some(folders)}")
        if folders:
            (folder,) = folders
            names = (*REQUIRED, *OPTIONAL)
            return {name: paths[folder + name] for name in names if folder + name in paths}
        packages = [path for path in paths if path.endswith(PACKAGE_SUFFIX)]
        if len(packages) > 1:
            raise not_found(self.origin, f"there is more than one package: {_some(packages)}")
        if not packages:
            raise not_found(self.origin, f"there is no {config} with {tensors}, and no package")
        return {packages[0].rpartition("/")[2]: paths[packages[0]]}

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Convert errors of the registry to ours; those of its libraries lose their text."""
        from requests import RequestException
        from urllib3.exceptions import HTTPError

        from loramux_server.sources.registry import RegistryError
        from loramux_server.sources.registry_credentials import CredentialsError

        try:
            yield
        except RegistryError as error:
            if error.status in (401, 403):
                raise not_readable(self.origin) from None
            if error.status == 404:
                raise not_found(self.origin, "there is no such artifact") from None
            raise unavailable(self.origin, str(error)) from None
        except CredentialsError as error:
            raise unavailable(self.origin, f"credentials: {error}") from None
        except ArchiveError as error:
            raise not_found(self.origin, str(error)) from None
        except (RequestException, HTTPError, OSError, ValueError) as error:  # e.g. a malformed URL
            raise unavailable(self.origin, type(error).__name__) from error


def _some(paths: list[str]) -> str:
    return ", ".join(shown(path or "/") for path in sorted(paths)[:3])
