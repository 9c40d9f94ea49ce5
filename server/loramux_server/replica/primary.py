"""What a replica asks of its primary, as an administrator of it."""

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
"""Seconds that the first answer may take: a server that starts waits for it."""
TIMEOUT = 60.0
"""Seconds that an answer may take."""
FETCH_TIMEOUT = 3600.0
"""Seconds that a package may take."""


class Primary:
    """The server whose adapters a replica has. Lives on the event loop."""

    def __init__(
        self,
        target: str,
        *,
        key: str,
        authorities: Path | None,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        """Connect to `target` when something is asked of it.

        Args:
            target: Its HOST:PORT.
            key: A key of its administrator; empty if it has no keys.
            authorities: Who signs its certificate; None if it speaks no TLS.
            certificate: Files of what is presented to it, and of the private key; None for nothing.

        Raises:
            InvalidArgumentError: The key cannot be one, or would be sent where others can read it;
                or the certificate cannot be used.
            OSError: A file cannot be read.
        """

        def channel(key: str, *, forwards: bool) -> grpc.aio.Channel:
            return open_aio_channel(
                target, key=key, tls=authorities, certificate=certificate, credentials=None,
                retries=False, tracer_provider=None, forwards=forwards,
            )  # fmt: skip

        self.target = target
        self.shows_keys = bool(key)
        """Whether it wants to know who calls."""
        self.plain = channel("", forwards=bool(key))
        """What shows it no key, for calls of others."""
        self._channel = channel(key, forwards=False)
        self._adapters = AsyncAdapters(self._channel, TIMEOUT)
        self._packages = AdapterServiceStub(self._channel)
        self._quarantine = QuarantineServiceStub(self._channel)
        self._server = ServerServiceStub(self._channel)

    async def demand_all(self) -> None:
        """Demand that it shows all adapters: others than administrators see those of few tenants.

        Raises:
            PermissionDeniedError: It does not.
            LoramuxError: It does not answer, or not this caller.
        """
        request = quarantine_pb2.ListQuarantinedRequest()
        try:
            with _wire.raising():
                await self._quarantine.ListQuarantined(request, timeout=READY_TIMEOUT)
        except PermissionDeniedError:
            raise PermissionDeniedError(
                "--replica-key has no admin role, which is needed to see all adapters",
                reason="PERMISSION_DENIED",
            ) from None

    async def lineage(self) -> str:
        """Return whose adapters it has; see `Lineage`.

        Raises:
            LoramuxError: It does not answer, or not this caller.
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
            LoramuxError: It does not answer, or not this caller.
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
                    if name and adapter.name != bare:  # the name itself comes before longer ones
                        return found
                    versions = found.setdefault(full_name(adapter.tenant, adapter.name), [])
                    versions.insert(0, adapter)  # newest first
                request.page_token = page.next_page_token
                if not request.page_token:
                    return found

    async def aliases(self, name: str) -> dict[str, Split]:
        """Return what each alias of an adapter stands for.

        Raises:
            LoramuxError: It does not answer, or has no such adapter any more.
        """
        found = await self._adapters.aliases(_with_tenant(name))
        return {alias: Split.of(weights) for alias, weights in found.items()}

    async def fetch(self, adapter: Adapter, staged: Staged) -> None:
        """Write the package of a version to `staged`.

        Raises:
            LoramuxError: It does not answer, or has the version no more.
        """
        request = adapters_pb2.DownloadAdapterRequest(
            name=f"{adapter.tenant}/{adapter.name}:{adapter.version}@{adapter.digest}"
        )
        with _wire.raising():
            async for response in self._packages.DownloadAdapter(request, timeout=FETCH_TIMEOUT):
                if response.chunk:
                    await asyncio.to_thread(staged.write, response.chunk)

    async def changes(self) -> AsyncIterator[str]:
        """Yield the full names of adapters with which something happened, as it happens.

        Raises:
            LoramuxError: It does not answer any more.
        """
        async for change in self._adapters.watch():
            if change.kind != "moved":
                yield full_name(change.adapter.tenant, change.adapter.name)

    async def close(self) -> None:
        """End all that is under way."""
        await self._channel.close(None)
        await self.plain.close(None)


def _with_tenant(name: str) -> str:
    """Return a full name as it means the same whatever the tenant of the caller."""
    return f"{DEFAULT_TENANT}/{name}" if name and "/" not in name else name
