"""A replica's client for its primary, with an admin key."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from loramux import _adapter_wire as wire
from loramux import _wire
from loramux._access import open_aio_channel
from loramux._aio_adapters import AsyncAdapters
from loramux.errors import DeadlineExceededError, PermissionDeniedError, UnavailableError
from loramux.types import Adapter
from loramux.v1 import adapters_pb2, quarantine_pb2, server_pb2
from loramux.v1.adapters_pb2_grpc import AdapterServiceStub
from loramux.v1.quarantine_pb2_grpc import QuarantineServiceStub
from loramux.v1.server_pb2_grpc import ServerServiceStub
from loramux_server.store.alias import Split
from loramux_server.store.blobs import Staged
from loramux_server.store.reference import DEFAULT_TENANT, full_name

READY_TIMEOUT = 10.0
"""Seconds that the first answers may take: a starting server waits for them."""
TIMEOUT = 60.0
"""Seconds that any other answer may take."""
FETCH_TIMEOUT = 3600.0
"""Seconds that the download of a package may take."""


class Primary:
    """The server whose adapters a replica mirrors. Lives on the event loop."""

    def __init__(
        self,
        target: str,
        *,
        key: str,
        authorities: Path | None,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        """Open channels to `target`, which connect on the first call.

        Args:
            target: Its HOST:PORT.
            key: An admin key of it; empty if it has no keys.
            authorities: File of the CA certificates for TLS; None for no TLS.
            certificate: Files of the client certificate and its private key; None for none.

        Raises:
            InvalidArgumentError: The key is malformed, or would be sent unencrypted; or the
                certificate cannot be used.
            OSError: A file cannot be read.
        """

        def channel(key: str, *, forwards: bool) -> grpc.aio.Channel:
            return open_aio_channel(
                target, key=key, tls=authorities, certificate=certificate, credentials=None,
                retries=False, tracer_provider=None, forwards=forwards,
            )  # fmt: skip

        self.target = target
        self.shows_keys = bool(key)
        """Whether it requires keys, so that those of callers are forwarded."""
        self.plain = channel("", forwards=bool(key))
        """A channel without a key of its own, for forwarded calls."""
        self._channel = channel(key, forwards=False)
        self._adapters = AsyncAdapters(self._channel, TIMEOUT)
        self._packages = AdapterServiceStub(self._channel)
        self._quarantine = QuarantineServiceStub(self._channel)
        self._server = ServerServiceStub(self._channel)

    async def check_admin_key(self) -> None:
        """Demand that the key is an admin's: others see only their own and public adapters.

        Raises:
            PermissionDeniedError: It is not.
            LoramuxError: The primary does not answer, or rejects the caller.
        """
        request = quarantine_pb2.ListQuarantinedRequest()
        try:
            with _wire.raising():
                await self._quarantine.ListQuarantined(request, timeout=READY_TIMEOUT)
        except PermissionDeniedError:
            raise PermissionDeniedError(
                "--replica-key lacks the admin role, which is required to see all adapters",
                reason="PERMISSION_DENIED",
            ) from None

    async def lineage(self) -> str:
        """Return the lineage of its store; see `Lineage`.

        Raises:
            LoramuxError: The primary does not answer, or rejects the caller.
        """
        request = server_pb2.GetServerInfoRequest()
        try:
            with _wire.raising():
                answer = await self._server.GetServerInfo(request, timeout=READY_TIMEOUT)
        except DeadlineExceededError:
            raise UnavailableError(f"no answer within {READY_TIMEOUT:g} s") from None
        return answer.lineage

    async def versions(self, name: str = "") -> dict[str, list[Adapter]]:
        """Return all versions, oldest first, of one adapter or of all, by full name.

        Raises:
            LoramuxError: The primary does not answer, or rejects the caller.
        """
        tenant, _, bare = _with_tenant(name).rpartition("/")
        request = wire.list_request(
            "", all_versions=True, tenant=tenant, name_prefix=bare, source="", tier="",
        )  # fmt: skip
        found: dict[str, list[Adapter]] = {}
        with _wire.raising():
            while True:
                page = await self._packages.ListAdapters(request, timeout=TIMEOUT)
                for adapter in map(wire.adapter, page.adapters):
                    if name and adapter.name != bare:  # sorted: the exact name comes first
                        return found
                    versions = found.setdefault(full_name(adapter.tenant, adapter.name), [])
                    versions.insert(0, adapter)  # listed newest first
                request.page_token = page.next_page_token
                if not request.page_token:
                    return found

    async def aliases(self, name: str) -> dict[str, Split]:
        """Return the weights of versions behind each alias of an adapter.

        Raises:
            LoramuxError: The primary does not answer, or no longer has the adapter.
        """
        found = await self._adapters.aliases(_with_tenant(name))
        return {alias: Split.of(weights) for alias, weights in found.items()}

    async def fetch(self, adapter: Adapter, staged: Staged) -> None:
        """Download the package of a version into `staged`.

        Raises:
            LoramuxError: The primary does not answer, or no longer has the version.
        """
        request = adapters_pb2.DownloadAdapterRequest(
            name=f"{adapter.tenant}/{adapter.name}:{adapter.version}@{adapter.digest}"
        )
        with _wire.raising():
            async for response in self._packages.DownloadAdapter(request, timeout=FETCH_TIMEOUT):
                if response.chunk:
                    await asyncio.to_thread(staged.write, response.chunk)

    async def changes(self) -> AsyncIterator[str]:
        """Yield the full names of adapters as they change; moves between tiers do not count.

        Raises:
            LoramuxError: The primary no longer answers.
        """
        async for change in self._adapters.watch():
            if change.kind != "moved":
                yield full_name(change.adapter.tenant, change.adapter.name)

    async def close(self) -> None:
        """Close the channels, cancelling calls in flight."""
        await self._channel.close(None)
        await self.plain.close(None)


def _with_tenant(name: str) -> str:
    """Return a full name with its tenant, so that it does not depend on the caller's."""
    return f"{DEFAULT_TENANT}/{name}" if name and "/" not in name else name
