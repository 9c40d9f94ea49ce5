"""Registry credentials in the files of docker, podman and Kubernetes.

They are read from the file that REGISTRY_AUTH_FILE names, or else from `config.json` in the folder
that DOCKER_CONFIG names, by default `~/.docker`. If that names a credential helper, the program
`docker-credential-NAME` is run (https://docs.docker.com/reference/cli/docker/login/).
"""

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_REFRESH_TOKEN = "<token>"
"""Docker's user name if the secret is a refresh token."""
_HELPER_TIMEOUT = 30.0
_HUB_NAMES = ("https://index.docker.io/v1/", "docker.io")
"""Docker Hub's names in credential stores: docker's, then podman's."""


class CredentialsError(Exception):
    """A credentials file or helper cannot be read."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The credentials for a registry."""

    username: str
    secret: str

    @property
    def is_refresh_token(self) -> bool:
        """Whether the secret is a refresh token."""
        return self.username == _REFRESH_TOKEN

    def basic(self) -> str:
        """Return the `Authorization` header for HTTP basic authentication."""
        pair = f"{self.username}:{self.secret}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


def credentials_for(host: str, repository: str) -> Credentials | None:
    """Return the credentials for a repository, or else for its registry; None if there are none.

    Raises:
        CredentialsError: The file is malformed, or a helper fails.
    """
    path = _path()
    try:
        config = json.loads(path.read_bytes())
        known = {_plain(name): entry for name, entry in config.get("auths", {}).items()}
        helpers = {_plain(name): helper for name, helper in config.get("credHelpers", {}).items()}
        store = config.get("credsStore")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise CredentialsError(f"{path} is not a valid Docker configuration: {error}") from error
    for name in _names(host, repository):
        if helper := helpers.get(name):
            return _from_helper(str(helper), host)
        entry = known.get(name)
        if isinstance(entry, dict) and (found := _written(entry, path)):
            return found
    return _from_helper(str(store), host) if store else None


def _path() -> Path:
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        return Path(named)
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"


def _names(host: str, repository: str) -> Iterator[str]:
    """Yield the possible names of an entry, most specific first."""
    parts = [host, *repository.split("/")]
    for end in range(len(parts), 0, -1):
        yield "/".join(parts[:end])
    if host == "docker.io":
        yield "index.docker.io"


def _plain(name: str) -> str:
    """Return the name of an entry without the scheme and API path that older Docker clients add."""
    return re.sub(r"^https?://|/(v[12]/?)?$", "", name)


def _written(entry: dict[str, Any], path: Path) -> Credentials | None:
    """Return the credentials in an entry; None if it is empty, as with a credential store."""
    if token := entry.get("identitytoken"):
        return Credentials(_REFRESH_TOKEN, str(token))
    if auth := entry.get("auth"):
        try:
            username, separator, secret = base64.b64decode(str(auth)).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            separator = ""
        if not separator:
            raise CredentialsError(f"{path}: auth is not USER:SECRET in base64")
        return Credentials(username, secret)
    if "username" in entry and "password" in entry:
        return Credentials(str(entry["username"]), str(entry["password"]))
    return None


def _from_helper(helper: str, host: str) -> Credentials | None:
    """Return a credential helper's answer for a registry; None if it has no credentials for it."""
    servers = _HUB_NAMES if host == "docker.io" else (host,)
    return next(filter(None, (_answer(helper, server) for server in servers)), None)


def _answer(helper: str, server: str) -> Credentials | None:
    program = f"docker-credential-{helper}"
    if not re.fullmatch("[A-Za-z0-9_.-]+", helper):
        raise CredentialsError(f"{helper!r} is not a valid name of a credential helper")
    try:
        done = subprocess.run(
            [program, "get"],
            input=server.encode(),
            capture_output=True,
            timeout=_HELPER_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CredentialsError(f"{program}: {type(error).__name__}") from error
    if done.returncode:
        if b"credentials not found" in done.stdout:
            return None
        raise CredentialsError(f"{program} failed with exit code {done.returncode}")
    try:
        said = json.loads(done.stdout)
        return Credentials(str(said["Username"]), str(said["Secret"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CredentialsError(f"{program} returned no credentials") from error
