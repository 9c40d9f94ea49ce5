"""Keys of a server under test, and calls of any method with any of them."""

import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from loramux_server.access.caller import Role
from loramux_server.access.key import Key, new_key
from loramux_server.access.key_manager import KeyManager
from loramux_server.observe.call_record import REQUEST_ID_KEY
from loramux_server.store.catalog import Catalog
from tests.support.wire import refusal

SECOND = datetime.timedelta(seconds=1)


class Keys:
    """Makes keys in the store of a server, as `loramux keys` does."""

    def __init__(self, store: Path) -> None:
        store.mkdir(parents=True, exist_ok=True)
        self.catalog = Catalog.in_folder(store)
        self.manager = KeyManager(self.catalog.keys, store)

    def make(self, tenant: str, role: Role, lifetime: datetime.timedelta | None = None) -> Key:
        return self.manager.make(tenant=tenant, role=role, lifetime=lifetime)

    def revoked(self, tenant: str, role: Role) -> Key:
        key = self.make(tenant, role)
        self.manager.revoke(key.id)
        return key

    def expired(self, tenant: str, role: Role) -> Key:
        return self.make(tenant, role, -SECOND)

    def with_another_secret(self, key: Key) -> Key:
        return Key(key.id, key.text[:-43] + new_key().text[-43:])

    def close(self) -> None:
        self.catalog.close()


def shown(key: str | None) -> tuple[tuple[str, str], ...]:
    """Return the metadata that shows a key."""
    return () if key is None else (("authorization", f"Bearer {key}"),)


@dataclass(frozen=True)
class Outcome:
    """How a call ended, with every byte that the other side was told."""

    code: grpc.StatusCode
    message: str
    metadata: tuple[tuple[str, str | bytes], ...]
    reason: str = ""

    def renamed(self, old: str, new: str) -> "Outcome":
        """Return it with another name, of the same length, in it."""
        metadata = tuple(
            (key, value.replace(old.encode(), new.encode()) if isinstance(value, bytes) else value)
            for key, value in self.metadata
        )
        return Outcome(self.code, self.message.replace(old, new), metadata, self.reason)


def trailing(error: grpc.RpcError) -> tuple[Any, ...]:
    assert isinstance(error, grpc.Call)
    return tuple(error.trailing_metadata() or ())


def call(
    channel: grpc.Channel,
    path: str,
    requests: Iterable[Any],
    key: str | None,
    *,
    streams: tuple[bool, bool],
    timeout: float = 60,
) -> Outcome:
    """Send messages to any method and return how that ended; of a stream, one message counts."""
    kind = f"{'stream' if streams[0] else 'unary'}_{'stream' if streams[1] else 'unary'}"
    method = getattr(channel, kind)(path, request_serializer=lambda m: m.SerializeToString())
    request = iter(list(requests)) if streams[0] else next(iter(requests))
    try:
        answer = method(request, metadata=shown(key), timeout=timeout)
        if streams[1]:
            next(answer)
            answer.cancel()
    except grpc.RpcError as error:
        found = refusal(error)
        reported = tuple(
            sorted((name, value) for name, value in trailing(error) if name != REQUEST_ID_KEY)
        )
        return Outcome(found.code, found.message, reported, found.reason)
    return Outcome(grpc.StatusCode.OK, "", ())
