"""Images: encoded concurrently with steps, and cached for requests that show them again."""

import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from loramux_adapters import PackageError
from loramux_server.engine.fault import explained
from loramux_server.engine.request import Request
from loramux_server.images.messages import Image, PlacedImage
from loramux_server.lora.packed import DamagedError
from loramux_server.lora.sight_change import SightChange
from loramux_server.models.vision.seen import Seen, View
from loramux_server.models.vision.sight import NotFiniteError
from loramux_server.wire.adapter_source import AdapterSource

_NICENESS = 10
"""Niceness of the encoder's threads: tokens of other requests come first."""
KEPT_BYTES = 64 << 20
"""Memory for the cache of encoded images."""


def _give_way() -> None:
    """Lower the priority of the calling thread and those that torch starts for it, below steps."""
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


class Sees(Protocol):
    """A vision encoder; called on a thread of its own."""

    def look(self, image: Image, tokens: Sequence[int], change: SightChange | None = None) -> Seen:
        """Encode `image`, whose placeholders in a prompt are `tokens`.

        `change` is what an adapter does to the vision encoder.
        """


class Changes(Protocol):
    """What knows how adapters change the vision encoder; called on the encoder's thread."""

    def of(self, source: AdapterSource) -> SightChange:
        """Return the change that the adapter `source` makes."""


@dataclass(frozen=True, slots=True)
class Looked:
    """The requests whose images have been encoded since the last step."""

    ready: list[Request]
    failed: list[tuple[Request, BaseException]]


class Views:
    """Encodes the images of requests before they are queued, one image after the other."""

    def __init__(
        self, sees: Sees | None, changes: Changes | None, wake: Callable[[], None]
    ) -> None:
        """Prepare; no thread is started before the first image.

        Args:
            sees: The vision encoder; None if there is none.
            changes: Knows how adapters change it; None if they do not.
            wake: Called from the encoder's thread when a request can be queued.
        """
        self._sees = sees
        self._changes = changes
        self._executor: Executor = ThreadPoolExecutor(1, "look", initializer=_give_way)
        self._wake = wake
        self._kept: OrderedDict[tuple[str, bytes, str], Seen] = OrderedDict()
        """Encoded images, by tenant, digest of the image, and digest of an adapter that changes the
        encoder. With the tenant in the key, response times do not reveal others' images. Used on
        the encoder's thread only."""
        self._waiting: dict[Request, Future[View]] = {}
        self._paused: set[Request] = set()
        """Waiting requests that are not to be queued before they are resumed."""

    @property
    def has_looked(self) -> bool:
        """Whether `land` would find a request."""
        return any(True for _ in self._landed())

    def begin(self, request: Request, images: Sequence[PlacedImage]) -> None:
        """Begin to encode `images`, which are in the prompt of `request`."""
        future = self._executor.submit(self._look, request, images)
        self._waiting[request] = future
        future.add_done_callback(lambda _: self._wake())

    def end(self, request: Request) -> None:
        """Forget `request`, if it waits for its images."""
        self._paused.discard(request)
        if future := self._waiting.pop(request, None):
            future.cancel()

    def pause(self, request: Request) -> None:
        """Keep `request` from being queued before `resume`, if it waits for its images."""
        if request in self._waiting:
            self._paused.add(request)

    def resume(self, request: Request) -> None:
        """Let a paused `request` be queued again."""
        self._paused.discard(request)

    def land(self) -> Looked:
        """Return the requests whose images have been encoded, with their views set, or failed."""
        looked = Looked([], [])
        for request, future in list(self._landed()):
            del self._waiting[request]
            if error := future.exception():
                looked.failed.append((request, error))
            else:
                request.view = future.result()
                looked.ready.append(request)
        return looked

    def close(self) -> None:
        """Stop after the image that is being encoded."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def check(self, requests: Collection[Request]) -> None:
        """Assert that no request that has ended waits here."""
        assert self._waiting.keys() <= set(requests), "images of an ended request are encoded"
        assert self._waiting.keys() >= self._paused, "a request is paused without images to encode"

    def _landed(self) -> Iterator[tuple[Request, Future[View]]]:
        """Yield the requests that can be queued."""
        for request, future in self._waiting.items():
            if future.done() and request not in self._paused:
                yield request, future

    def _look(self, request: Request, images: Sequence[PlacedImage]) -> View:
        prompt, adapter = request.prompt, request.adapter
        change = self._changes.of(adapter) if self._changes and adapter else None
        digest = adapter.digest if adapter and change else ""
        placed = []
        for each in images:
            key = request.tenant, each.image.digest, digest
            seen = self._kept.pop(key, None)
            if seen is None:
                assert self._sees is not None
                tokens = prompt[each.start : each.start + each.length]
                seen = self._sees.look(each.image, tokens, change)
            self._kept[key] = seen
            placed.append((each.start, each.length, seen))
        while sum(seen.num_bytes for seen in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)
        return View.of(len(prompt), placed)


def why_unseen(error: BaseException) -> tuple[str, str]:
    """Return the reason and a message for callers if encoding an image raised `error`."""
    if isinstance(error, NotFiniteError):
        return "ADAPTER_NOT_FINITE" if error.is_changed else "INVALID_FIELD", str(error)
    reason, why = explained(error, "encoding an image")
    is_of_adapter = isinstance(error, DamagedError | PackageError)
    return reason, f"the stored adapter cannot be loaded: {why}" if is_of_adapter else why
