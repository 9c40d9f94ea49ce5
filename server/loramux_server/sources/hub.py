"""Adapters on the Hugging Face Hub or a compatible server: `hf://ORG/NAME[@REVISION][/PATH]`.

huggingface_hub takes its endpoint and token from the environment: HF_ENDPOINT, HF_TOKEN.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote

from loramux_server.sources.snapshot import (
    OPTIONAL,
    PACKAGE_SUFFIX,
    REQUIRED,
    not_a_uri,
    not_found,
    not_readable,
    unavailable,
)

CHUNK_BYTES = 1 << 20
TIMEOUT = 30.0
"""Read timeout in seconds."""
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_URI = re.compile(
    rf"hf://(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[A-Za-z0-9._%-]+))?(?P<path>(?:/{_PART})*)"
)


@dataclass(frozen=True, slots=True)
class HubUri:
    """A parsed `hf://` URI."""

    repo: str
    """`ORG/NAME`."""
    revision: str
    """A branch, tag or commit."""
    path: str
    """A package or a folder in the repository; empty for the root."""


def parse_uri(uri: str) -> HubUri:
    """Parse `uri`.

    Raises:
        InvalidArgumentError: It is not a valid hub URI.
    """
    found = _URI.fullmatch(uri.rstrip("/"))
    if not found:
        raise not_a_uri(
            uri, "hf://ORG/NAME[@REVISION][/PATH], with the path of a package or a folder"
        )
    # Slashes in revisions such as refs/pr/1 are encoded as %2F, as everywhere on the hub.
    revision = unquote(found["revision"] or "main")
    return HubUri(found["repo"], revision, found["path"].strip("/"))


class HubFiles:
    """One package, or the files of a PEFT folder, in one commit of a repository."""

    def __init__(self, uri: HubUri) -> None:
        """List the files of the revision.

        Raises:
            NotFoundError: The revision does not exist, or has no adapter.
            FailedPreconditionError: The repository is gated, and the server has no access.
            UnavailableError: The hub does not answer.
        """
        from huggingface_hub import HfApi

        self._uri = uri
        self.origin = f"hf://{uri.repo}@{uri.revision}" + (f"/{uri.path}" if uri.path else "")
        with self._errors():
            info = HfApi().model_info(
                uri.repo, revision=uri.revision, files_metadata=True, timeout=TIMEOUT
            )
        there = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        self.sizes: Mapping[str, int] = self._chosen(there)
        self._commit = info.sha or uri.revision
        self.origin = self.origin.replace(f"@{uri.revision}", f"@{self._commit}", 1)

    def read(self, name: str) -> Iterator[bytes]:
        """Yield the chunks of a file; see `Snapshot.read`."""
        from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        path = self._uri.path
        if path and not path.endswith(PACKAGE_SUFFIX):
            name = f"{path}/{name}"
        elif path:
            name = path
        url = hf_hub_url(self._uri.repo, name, revision=self._commit)
        # No compression in transit: the decompressed size would be unbounded.
        headers = build_hf_headers() | {"Accept-Encoding": "identity"}
        with (
            self._errors(),
            get_session().stream(
                "GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT
            ) as response,
        ):
            hf_raise_for_status(response)
            yield from response.iter_raw(CHUNK_BYTES)

    def _chosen(self, there: Mapping[str, int]) -> dict[str, int]:
        """Return the files of the repository that make up the adapter."""
        path = self._uri.path
        if path.endswith(PACKAGE_SUFFIX):
            if path not in there:
                raise not_found(self.origin, "there is no such file")
            return {path.rpartition("/")[2]: there[path]}
        prefix = f"{path}/" if path else ""
        for name in REQUIRED:
            if prefix + name not in there:
                raise not_found(self.origin, f"there is no {name}")
        names = (*REQUIRED, *OPTIONAL)
        return {name: there[prefix + name] for name in names if prefix + name in there}

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Convert errors of the hub to ours, without their text."""
        from huggingface_hub import errors

        try:
            yield
        except errors.GatedRepoError:
            raise not_readable(self.origin) from None
        except errors.RepositoryNotFoundError:
            # The hub answers the same if a token is missing.
            raise not_found(
                self.origin, "there is no such repository, or this server has no access"
            ) from None
        except (errors.RevisionNotFoundError, errors.EntryNotFoundError):
            raise not_found(self.origin, "there is no such revision") from None
        except (_transport_error(), errors.OfflineModeIsEnabled, OSError) as error:
            raise unavailable(self.origin, type(error).__name__) from error


def _transport_error() -> type[Exception]:
    """Return the base error of huggingface_hub's HTTP library, which depends on its version."""
    from huggingface_hub import errors

    kind: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    return kind
