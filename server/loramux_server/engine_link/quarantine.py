"""What is not run again: it was there each time that the engine died, or gives nothing but NaN.

A request is known by its content, so that a call that is made again is the same request; its seed
does not count, which a server chooses where none is given. Lives on the event loop.
"""

import datetime
import hashlib
import struct
from collections.abc import Callable, Iterable

import msgspec

from loramux.errors import FailedPreconditionError
from loramux_server.wire.ask import Ask

MAX_NOT_FINITE = 3
"""So many requests without finite logits, and none that ended well between, are enough."""
MAX_ENTRIES = 1024
"""Of more, the oldest are forgotten."""
REQUEST = "request:"

_encode = msgspec.msgpack.Encoder(order="sorted").encode


def key_of(ask: Ask) -> str:
    """Return what a request is known by: the same for the same request."""
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
    """One request or adapter that is refused."""

    key: str
    """The digest of an adapter, or `request:` and a digest of the request."""
    cause: str
    since: datetime.datetime


class Quarantine:
    """Refuses what is likely to do harm, until somebody clears it."""

    def __init__(self, max_deaths: int) -> None:
        """Refuse nothing yet.

        Args:
            max_deaths: So many deaths in a row that a request or adapter was present in are enough;
                0 means that deaths do not count.
        """
        self._max_deaths = max_deaths
        self._entries: dict[str, Entry] = {}
        self._deaths: dict[str, int] = {}
        """Deaths in a row, of what was present in the last one and has not ended well since."""
        self._not_finite: dict[str, int] = {}
        self.on_refused: Callable[[Entry], None] = lambda entry: None
        """Called with what begins to be refused."""

    @property
    def entries(self) -> list[Entry]:
        """What is refused, the oldest first."""
        return list(self._entries.values())

    def restore(self, entries: Iterable[Entry]) -> None:
        """Refuse what a server before this one did."""
        self._entries.update({entry.key: entry for entry in entries})

    def refuses(self, key: str) -> bool:
        """Return whether `key`, the digest of an adapter or the key of a request, is refused."""
        return key in self._entries

    def check(self, ask: Ask) -> None:
        """Demand that `ask` may run.

        Raises:
            FailedPreconditionError: Its adapter or the request itself is refused.
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
        """Note what the engine was asked to do when it died."""
        if not self._max_deaths:
            return
        present: set[str] = set()
        for ask in under_way:
            present |= {key_of(ask), ask.digest} if ask.digest else {key_of(ask)}
        self._deaths = {key: self._deaths.get(key, 0) + 1 for key in present}
        guilty = [key for key, deaths in self._deaths.items() if deaths >= self._max_deaths]
        for key in guilty:
            deaths = self._deaths.pop(key)
            self._refuse(key, f"the engine died {deaths} times in a row while it was under way")

    def ended_well(self, ask: Ask) -> None:
        """Note that `ask` came to its end: neither it nor its adapter is what does harm."""
        if self._deaths:
            self._deaths.pop(key_of(ask), None)
            self._deaths.pop(ask.digest or "", None)
        if self._not_finite:
            self._not_finite.pop(ask.digest or "", None)

    def was_not_finite(self, digest: str) -> None:
        """Note that a request ended because its logits under an adapter were not finite."""
        count = self._not_finite.pop(digest, 0) + 1
        if count >= MAX_NOT_FINITE:
            self._refuse(digest, f"{count} requests in a row had logits that were not finite")
            return
        self._not_finite[digest] = count
        if len(self._not_finite) > MAX_ENTRIES:
            del self._not_finite[next(iter(self._not_finite))]

    def clear(self, key: str) -> bool:
        """Let something run again; return whether it was refused."""
        self._deaths.pop(key, None)
        self._not_finite.pop(key, None)
        return self._entries.pop(key, None) is not None

    def _refuse(self, key: str, cause: str) -> None:
        entry = self._entries[key] = Entry(key, cause, datetime.datetime.now(datetime.UTC))
        if len(self._entries) > MAX_ENTRIES:
            del self._entries[next(iter(self._entries))]
        self.on_refused(entry)


def dump(entries: list[Entry]) -> str:
    """Return `entries` as text."""
    return msgspec.json.encode(entries).decode()


def load(text: str) -> list[Entry]:
    """Return what `dump` made text of."""
    return msgspec.json.decode(text, type=list[Entry])


def _refusal(entry: Entry, what: str, reason: str, field: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{what} is in quarantine: {entry.cause}; an operator lets it run again with "
        f"`loramux quarantine clear {entry.key}`",
        reason=reason,
        field=field,
    )
