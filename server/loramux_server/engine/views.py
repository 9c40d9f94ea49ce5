"""Images on their way: looked at beside the steps, and kept for who shows them again."""

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
"""Of who looks: neighbours' tokens come first."""
KEPT_BYTES = 64 << 20
"""Memory for what was seen in images that no request shows any more."""


def _give_way() -> None:
    """Let the calling thread, and those that torch starts for it, come after those of steps."""
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


class Sees(Protocol):
    """What sees images; called on threads of its own."""

    def look(self, image: Image, tokens: Sequence[int], change: SightChange | None = None) -> Seen:
        """Return what is seen in `image`, for which `tokens` stand in a prompt.

        `change` is what an adapter does to what sees.
        """


class Changes(Protocol):
    """What knows what adapters do to what sees images; called on the thread that looks."""

    def of(self, source: AdapterSource) -> SightChange:
        """Return what the adapter `source` does."""


@dataclass(frozen=True, slots=True)
class Looked:
    """The requests whose images have been looked at since the last step."""

    ready: list[Request]
    failed: list[tuple[Request, BaseException]]


class Views:
    """Looks at the images of requests before they are queued, one image after the other."""

    def __init__(
        self, sees: Sees | None, changes: Changes | None, wake: Callable[[], None]
    ) -> None:
        """Prepare; no thread is started before the first image.

        Args:
            sees: What sees images; None where nothing does.
            changes: Knows what adapters do to that; None where they do nothing.
            wake: Called from its thread when a request can be queued.
        """
        self._sees = sees
        self._changes = changes
        self._executor: Executor = ThreadPoolExecutor(1, "look", initializer=_give_way)
        self._wake = wake
        self._kept: OrderedDict[tuple[str, bytes, str], Seen] = OrderedDict()
        """What was seen, by the tenant, and the digests of the image and of an adapter with which
        it looks different: how long a request takes tells nobody what images others have. Used on
        the thread that looks alone."""
        self._waiting: dict[Request, Future[View]] = {}
        self._paused: set[Request] = set()
        """Those who wait and are not to be queued before their reader goes on."""

    @property
    def has_looked(self) -> bool:
        """Whether `land` would find a request."""
        return any(True for _ in self._landed())

    def begin(self, request: Request, images: Sequence[PlacedImage]) -> None:
        """Look at `images`, which the prompt of `request` holds."""
        future = self._executor.submit(self._look, request, images)
        self._waiting[request] = future
        future.add_done_callback(lambda _: self._wake())

    def end(self, request: Request) -> None:
        """Forget `request`, if its images are still to be looked at."""
        self._paused.discard(request)
        if future := self._waiting.pop(request, None):
            future.cancel()

    def pause(self, request: Request) -> None:
        """Let `request` not be queued before `resume`, if its images are still to be looked at."""
        if request in self._waiting:
            self._paused.add(request)

    def resume(self, request: Request) -> None:
        """Let a paused `request` be queued."""
        self._paused.discard(request)

    def land(self) -> Looked:
        """Take in the requests whose images have been looked at; each has its view then."""
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
        """Look at no more images than the one that is being looked at."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def check(self, requests: Collection[Request]) -> None:
        """Assert that nobody waits here who has ended."""
        assert self._waiting.keys() <= set(requests), "images of one that has ended are looked at"
        assert self._waiting.keys() >= self._paused, "one is paused whose images are not looked at"

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
    """Return the reason, and words for callers, where looking at an image raised `error`."""
    if isinstance(error, NotFiniteError):
        return "ADAPTER_NOT_FINITE" if error.is_changed else "INVALID_FIELD", str(error)
    reason, why = explained(error, "looking at an image")
    is_of_adapter = isinstance(error, DamagedError | PackageError)
    return reason, f"the stored adapter cannot be loaded: {why}" if is_of_adapter else why
