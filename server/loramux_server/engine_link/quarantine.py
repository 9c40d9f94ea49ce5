"""Quarantine: refuses requests and adapters that keep crashing the engine, or give only NaN.

A request is identified by its content, so that a retry is the same request. Its seed is ignored,
since the server chooses one where none is given. Lives on the event loop.
"""

import datetime
import hashlib
import struct
from collections.abc import Callable, Iterable

import msgspec

from loramux.errors import FailedPreconditionError
from loramux_server.wire.ask import Ask

MAX_NOT_FINITE = 3
"""Requests in a row with non-finite logits after which an adapter is quarantined."""
MAX_ENTRIES = 1024
"""Beyond this, the oldest are dropped."""
REQUEST = "request:"

_encode = msgspec.msgpack.Encoder(order="sorted").encode


def key_of(ask: Ask) -> str:
    """Return the key that identifies a request by its content."""
    content = hashlib.blake2b(digest_size=16)
    for part in (
        ask.tenant.encode(),
        (ask.digest or "").encode(),
        struct.pack(f"<{len(ask.prompt)}q", *ask.prompt),
        _encode(msgspec.structs.replace(ask.sampling, seed=0)),
        *(placed.image.digest for placed in ask.images),
        *([struct.pack("<q", ask.second_from)] if ask.second_from else ()),
        *([struct.pack("<q", ask.num_source)] if ask.num_source else ()),
    ):
        content.update(struct.pack("<q", len(part)))
        content.update(part)
    return REQUEST + content.hexdigest()


class Entry(msgspec.Struct, frozen=True):
    """One request or adapter in quarantine."""

    key: str
    """The digest of an adapter, or `request:` and a digest of the request."""
    cause: str
    since: datetime.datetime


class Quarantine:
    """Refuses what is likely to do harm, until an operator clears it."""

    def __init__(self, max_deaths: int) -> None:
        """Refuse nothing yet.

        Args:
            max_deaths: Engine deaths in a row, with a request or adapter in flight, after which it
                is quarantined; 0 means never.
        """
        self._max_deaths = max_deaths
        self._entries: dict[str, Entry] = {}
        self._deaths: dict[str, int] = {}
        """Deaths in a row, for what was in flight in the last one and has not ended well since."""
        self._not_finite: dict[str, int] = {}
        self.on_refused: Callable[[Entry], None] = lambda entry: None
        """Called with each new entry."""

    @property
    def entries(self) -> list[Entry]:
        """All entries, the oldest first."""
        return list(self._entries.values())

    def restore(self, entries: Iterable[Entry]) -> None:
        """Restore the entries of an earlier server process."""
        self._entries.update({entry.key: entry for entry in entries})

    def refuses(self, key: str) -> bool:
        """Return whether `key`, an adapter's digest or a request's key, is in quarantine."""
        return key in self._entries

    def check(self, ask: Ask) -> None:
        """Check that `ask` may run.

        Raises:
            FailedPreconditionError: The request itself or its adapter is in quarantine.
        """
        if not self._entries:
            return
        parts = ask.adapter.parts if ask.adapter else ()
        for digest in (ask.digest, *(part.digest for part in parts)):
            if digest and (entry := self._entries.get(digest)):
                raise _refusal(entry, f"adapter {digest}", "ADAPTER_QUARANTINED", "adapter")
        if entry := self._entries.get(key_of(ask)):
            raise _refusal(entry, "the request", "REQUEST_QUARANTINED", "")

    def engine_died(self, under_way: Iterable[Ask]) -> None:
        """Record which requests were in flight when the engine died."""
        if not self._max_deaths:
            return
        present: set[str] = set()
        for ask in under_way:
            present |= {key_of(ask), ask.digest} if ask.digest else {key_of(ask)}
        self._deaths = {key: self._deaths.get(key, 0) + 1 for key in present}
        guilty = [key for key, deaths in self._deaths.items() if deaths >= self._max_deaths]
        for key in guilty:
            deaths = self._deaths.pop(key)
            self._refuse(key, f"the engine died {deaths} times in a row while it was in use")

    def ended_well(self, ask: Ask) -> None:
        """Record that `ask` ended normally, which clears the counts of it and its adapter."""
        if self._deaths:
            self._deaths.pop(key_of(ask), None)
            self._deaths.pop(ask.digest or "", None)
        if self._not_finite:
            self._not_finite.pop(ask.digest or "", None)

    def was_not_finite(self, digest: str) -> None:
        """Record that a request failed because its logits with an adapter were not finite."""
        count = self._not_finite.pop(digest, 0) + 1
        if count >= MAX_NOT_FINITE:
            self._refuse(digest, f"{count} requests in a row had logits that were not finite")
            return
        self._not_finite[digest] = count
        if len(self._not_finite) > MAX_ENTRIES:
            del self._not_finite[next(iter(self._not_finite))]

    def clear(self, key: str) -> bool:
        """Release something from quarantine; return whether it was there."""
        self._deaths.pop(key, None)
        self._not_finite.pop(key, None)
        return self._entries.pop(key, None) is not None

    def _refuse(self, key: str, cause: str) -> None:
        entry = self._entries[key] = Entry(key, cause, datetime.datetime.now(datetime.UTC))
        if len(self._entries) > MAX_ENTRIES:
            del self._entries[next(iter(self._entries))]
        self.on_refused(entry)


def dump(entries: list[Entry]) -> str:
    """Return `entries` as JSON."""
    return msgspec.json.encode(entries).decode()


def load(text: str) -> list[Entry]:
    """Parse the output of `dump`."""
    return msgspec.json.decode(text, type=list[Entry])


def _refusal(entry: Entry, what: str, reason: str, field: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{what} is in quarantine: {entry.cause}; an operator can release it with "
        f"`loramux quarantine clear {entry.key}`",
        reason=reason,
        field=field,
    )
