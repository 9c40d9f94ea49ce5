"""A server that answers as a registry of OCI artifacts does, as far as reading goes."""

import base64
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.http_answers import answering

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
TITLE = "org.opencontainers.image.title"
USER, SECRET = "robot", "s3:cret"


class Registry:
    """Repositories by name. Those of `closed/` want a token, and those of `basic/` a password."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], bytes] = {}
        """(repository, tag or digest) -> manifest."""
        self.asked: list[str] = []
        """Paths of all requests."""
        self.address = ""

    @property
    def host(self) -> str:
        """Return host and port."""
        return self.address.removeprefix("http://")

    def layer(self, data: bytes, kind: str = LAYER, **notes: str) -> dict[str, Any]:
        """Keep a blob and return its descriptor."""
        digest = digest_of(data)
        self.blobs[digest] = data
        return {"mediaType": kind, "digest": digest, "size": len(data), "annotations": notes}

    def put(self, repository: str, tag: str, layers: list[dict[str, Any]]) -> str:
        """Make `layers` an artifact and return its digest."""
        return self.put_manifest(
            repository, tag, {"schemaVersion": 2, "mediaType": MANIFEST, "layers": layers}
        )

    def put_manifest(self, repository: str, tag: str, content: object) -> str:
        """Keep a manifest, whatever it says, and return its digest."""
        data = json.dumps(content).encode()
        digest = digest_of(data)
        self.manifests[repository, tag] = self.manifests[repository, digest] = data
        return digest

    def put_folder(self, repository: str, tag: str, folder: Path) -> str:
        """Make the files of `folder` an artifact as `oras push` does."""
        return self.put(
            repository,
            tag,
            [self.layer(path.read_bytes(), **{TITLE: path.name}) for path in folder.iterdir()],
        )

    def answer(self, path: str, headers: Message) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body for a request."""
        self.asked.append(path)
        if path.startswith("/token"):
            return self._token(path, headers)
        repository, kind, name = path.removeprefix("/v2/").rsplit("/", 2)
        if challenge := self._challenge(repository, headers.get("Authorization", "")):
            return 401, {"WWW-Authenticate": challenge}, b""
        known = self.blobs.get(name)
        data = known if kind == "blobs" else self.manifests.get((repository, name))
        return (404, {}, b"{}") if data is None else (200, {}, data)

    def _challenge(self, repository: str, access: str) -> str:
        if repository.startswith("basic/") and access != _BASIC:
            return 'Basic realm="registry"'
        if repository.startswith("closed/") and access != f"Bearer for-{repository}":
            return f'Bearer realm="{self.address}/token",service="here",scope="repository:x:pull"'
        return ""

    def _token(self, path: str, headers: Message) -> tuple[int, dict[str, str], bytes]:
        if headers.get("Authorization") != _BASIC:
            return 401, {}, b""
        asked = parse_qs(urlsplit(path).query)
        _, repository, actions = asked["scope"][0].split(":")
        assert (asked["service"], actions) == (["here"], "pull")
        return 200, {}, json.dumps({"token": f"for-{repository}"}).encode()


_BASIC = f"Basic {base64.b64encode(f'{USER}:{SECRET}'.encode()).decode()}"


def digest_of(data: bytes) -> str:
    """Return what a registry calls some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def archive(folder: Path, prefix: str, mode: str = "w:gz", form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return the files of `folder` in an archive."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, format=form) as packed:  # type: ignore[call-overload]
        packed.add(folder, prefix)
    return file.getvalue()


@contextmanager
def running_registry() -> Iterator[Registry]:
    """Serve an empty registry on a port of this machine."""
    registry = Registry()
    with answering(registry.answer) as registry.address:
        yield registry
