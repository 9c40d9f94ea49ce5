"""A read-only client for OCI registries: manifests and blobs.

Follows the OCI distribution specification (https://github.com/opencontainers/distribution-spec) and
Docker's token authentication (https://distribution.github.io/distribution/spec/auth/token/).
requests takes proxies and CA certificates from the environment. As in Docker, registries on
loopback are contacted without TLS, and all others with TLS only.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.auth import AuthBase
from requests.utils import parse_dict_header

from loramux.errors import CancelledError
from loramux_server.sources.registry_credentials import Credentials, credentials_for

CHUNK_BYTES = 1 << 20
TIMEOUT = 30.0
"""Read timeout in seconds."""
MAX_REDIRECTS = 10
MAX_MANIFEST_BYTES = 4 << 20
"""The size that the specification requires registries to accept."""
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_LOOPBACK = re.compile(r"(localhost|127(\.\d+){3})(:\d+)?")
_HUB, _HUB_HOST = "docker.io", "registry-1.docker.io"


class RegistryError(Exception):
    """A registry answers with an error, or with invalid data."""

    def __init__(self, why: str, status: int = 0) -> None:
        super().__init__(why)
        self.status = status
        """HTTP status; 0 for invalid data."""


class Registry:
    """A repository of a registry. All methods block."""

    def __init__(
        self, host: str, repository: str, is_cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        """Initialize without a request; reads raise CancelledError once `is_cancelled`."""
        self._host, self._repository = host, repository
        self._is_local = bool(_LOOPBACK.fullmatch(host))
        scheme = "http" if self._is_local else "https"
        self._url = f"{scheme}://{_HUB_HOST if host == _HUB else host}/v2/{repository}"
        self._is_cancelled = is_cancelled
        self._session = requests.Session()
        if not self._is_local:  # redirects included
            del self._session.adapters["http://"]
        # Some registries take a client that keeps cookies for a browser.
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._access = _Access()

    def manifest(self, reference: str) -> tuple[str, dict[str, Any]]:
        """Return the digest and the content of the manifest of an artifact or image.

        An index has a manifest per platform. The first with a known platform, or with none, is
        taken, since an adapter is the same on all.

        Args:
            reference: A tag or a digest.

        Raises:
            RegistryError: It does not exist, or is invalid.
            requests.RequestException: The registry does not answer.
            urllib3.exceptions.HTTPError: The connection fails while the answer is read.
        """
        digest, manifest = self._manifest(reference)
        if "manifests" not in manifest:
            return digest, manifest
        for entry in _objects(manifest, "manifests"):
            platform = entry.get("platform")
            if not isinstance(platform, dict) or platform.get("os") != "unknown":
                inner = digest_in(entry)
                _, manifest = self._manifest(inner)
                if "manifests" in manifest:
                    raise RegistryError("nested image indexes are not supported")
                return inner, manifest
        raise RegistryError("the index has no manifest")

    def blob(self, digest: str) -> Iterator[bytes]:
        """Yield the chunks of a blob; its digest is verified after the last one.

        Raises:
            RegistryError: It does not exist, or its digest does not match.
            requests.RequestException: The registry does not answer.
            urllib3.exceptions.HTTPError: The connection fails while the answer is read.
        """
        found = hashlib.sha256()
        with self._get(f"/blobs/{digest}") as response:
            for chunk in self._chunks(response):
                found.update(chunk)
                yield chunk
        if digest != f"sha256:{found.hexdigest()}":
            raise RegistryError("a blob does not match its digest")

    def _manifest(self, reference: str) -> tuple[str, dict[str, Any]]:
        """Return the digest and the content of a manifest, which may be that of an index."""
        accepted = ", ".join((*_MANIFESTS, *_INDEXES))
        with self._get(f"/manifests/{reference}", Accept=accepted) as response:
            data = self._all_of(response, MAX_MANIFEST_BYTES)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if ":" in reference and digest != reference:
            raise RegistryError("the manifest does not match its digest")
        return digest, _object(data, "the manifest")

    @contextmanager
    def _get(self, path: str, **headers: str) -> Iterator[requests.Response]:
        """Yield the response to a GET below the repository; authenticate if challenged."""
        # No compression in transit: the decompressed size would be unbounded.
        headers["Accept-Encoding"] = "identity"
        for is_last in (False, True):
            url = self._url + path
            response = self._answer(url, self._access, headers=headers)
            with response:
                # Never answer the challenge of another host that it redirects to.
                if (
                    response.status_code == 401
                    and not is_last
                    and _place(response.url) == _place(url)
                ):
                    self._ask_access(response.headers.get("WWW-Authenticate", ""))
                    continue
                if response.status_code != 200:
                    raise RegistryError(
                        f"the registry returned status {response.status_code}", response.status_code
                    )
                yield response
                return

    def _ask_access(self, challenge: str) -> None:
        """Set the `Authorization` header by the challenge of a 401."""
        kind, _, rest = challenge.partition(" ")
        credentials = credentials_for(self._host, self._repository)
        if kind.lower() == "basic" and credentials:
            self._access.header = credentials.basic()
        elif kind.lower() == "bearer":
            fields = parse_dict_header(rest)  # type: ignore[no-untyped-call]
            token = self._token(fields, credentials)
            self._access.header = f"Bearer {token}"
        else:
            raise RegistryError("the registry requires credentials", 401)

    def _token(self, fields: Mapping[str, str | None], credentials: Credentials | None) -> str:
        realm, service = fields.get("realm") or "", fields.get("service") or ""
        if urlsplit(realm).scheme != "https" and not self._is_local:
            raise RegistryError(
                "the registry asks for credentials over a connection without TLS", 401
            )
        wanted = {"service": service, "scope": f"repository:{self._repository}:pull"}
        access = _Access()
        if credentials and credentials.is_refresh_token:
            wanted |= {"grant_type": "refresh_token", "client_id": "loramux"}
            wanted["refresh_token"] = credentials.secret
            response = self._session.post(
                realm, data=wanted, auth=access, stream=True, timeout=TIMEOUT,
                allow_redirects=False,
            )  # fmt: skip
        else:
            access.header = credentials.basic() if credentials else ""
            response = self._answer(realm, access, params=wanted)
        with response:
            if response.status_code != 200:
                status = response.status_code
                raise RegistryError(
                    f"the registry's token service returned status {status}", status
                )
            answer = _object(self._all_of(response, CHUNK_BYTES), "the token response")
        token = answer.get("token") or answer.get("access_token")
        if not isinstance(token, str):
            raise RegistryError("the registry returned no token")
        return token

    def _answer(
        self,
        url: str,
        access: "_Access",
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Return the response of `url`, following redirects; other hosts do not get `access`.

        Done here, since requests reads the whole body of a redirect.
        """
        begin = _place(url)
        for _ in range(MAX_REDIRECTS + 1):
            response = self._session.get(
                url, headers=headers, params=params, stream=True, timeout=TIMEOUT,
                auth=access if _place(url) == begin else _Access(), allow_redirects=False,
            )  # fmt: skip
            if not response.is_redirect:
                return response
            response.close()
            url, params = urljoin(response.url, response.headers["Location"]), None
        raise RegistryError(f"the registry redirects more than {MAX_REDIRECTS} times")

    def _all_of(self, response: requests.Response, most: int) -> bytes:
        data = bytearray()
        for chunk in self._chunks(response):
            data += chunk
            if len(data) > most:
                raise RegistryError(f"a response has more than {most} bytes")
        return bytes(data)

    def _chunks(self, response: requests.Response) -> Iterator[bytes]:
        """Yield bytes as they arrive, without filling chunks, to notice cancellation soon."""
        while chunk := response.raw.read1(CHUNK_BYTES, decode_content=False):
            if self._is_cancelled():
                raise CancelledError("the caller cancelled the request")
            yield chunk


def digest_in(descriptor: Mapping[str, Any]) -> str:
    """Return the digest in a descriptor.

    Raises:
        RegistryError: There is none, or it is not SHA-256.
    """
    digest = descriptor.get("digest")
    if not isinstance(digest, str) or not re.fullmatch("sha256:[0-9a-f]{64}", digest):
        raise RegistryError("a descriptor has no digest of the form sha256:HEX")
    return digest


def layers_of(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the descriptors of the layers of an artifact or image, in order.

    Raises:
        RegistryError: The manifest has no list of layers.
    """
    return _objects(manifest, "layers")


class _Access(AuthBase):
    """Sets the `Authorization` header. Used even if empty: otherwise requests reads .netrc."""

    header = ""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.header:
            request.headers["Authorization"] = self.header
        return request


def _object(data: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise RegistryError(f"{what} is not a JSON object")
    return found


def _objects(manifest: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = manifest.get(name)
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise RegistryError(f"the manifest has no list of {name}")
    return found


def _place(url: str) -> tuple[str, str]:
    """Return the scheme of `url`, and its host and port."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc
