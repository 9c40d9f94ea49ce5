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
from loramux_server.lora.vision_adapter import VisionAdapter
from loramux_server.models.vision.encoder import NotFiniteError
from loramux_server.models.vision.prompt_images import EncodedImage, PromptImages
from loramux_server.wire.adapter_source import AdapterSource

_NICENESS = 10
"""Niceness of the encoder's threads: tokens of other requests come first."""
KEPT_BYTES = 64 << 20
"""Memory for the cache of encoded images."""


def _lower_priority() -> None:
    """Lower the priority of the calling thread and those that torch starts for it, below steps."""
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


class Encoder(Protocol):
    """A vision encoder; called on a thread of its own."""

    def encode(
        self, image: Image, tokens: Sequence[int], change: VisionAdapter | None = None
    ) -> EncodedImage:
        """Encode `image`, whose placeholders in a prompt are `tokens`.

        `change` is what an adapter does to the vision encoder.
        """


class VisionAdapters(Protocol):
    """What knows how adapters change the vision encoder; called on the encoder's thread."""

    def of(self, source: AdapterSource) -> VisionAdapter:
        """Return the change that the adapter `source` makes."""


@dataclass(frozen=True, slots=True)
class EncodedRequests:
    """The requests whose images have been encoded since the last step."""

    ready: list[Request]
    failed: list[tuple[Request, BaseException]]


class ImageEncoder:
    """Encodes the images of requests before they are queued, one image after the other."""

    def __init__(
        self, encoder: Encoder | None, adapters: VisionAdapters | None, wake: Callable[[], None]
    ) -> None:
        """Prepare; no thread is started before the first image.

        Args:
            encoder: The vision encoder; None if there is none.
            adapters: Knows how adapters change it; None if they do not.
            wake: Called from the encoder's thread when a request can be queued.
        """
        self._encoder = encoder
        self._adapters = adapters
        self._executor: Executor = ThreadPoolExecutor(1, "vision", initializer=_lower_priority)
        self._wake = wake
        self._kept: OrderedDict[tuple[str, bytes, str], EncodedImage] = OrderedDict()
        """Encoded images, by tenant, digest of the image, and digest of an adapter that changes the
        encoder. With the tenant in the key, response times do not reveal others' images. Used on
        the encoder's thread only."""
        self._waiting: dict[Request, Future[PromptImages]] = {}
        self._paused: set[Request] = set()
        """Waiting requests that are not to be queued before they are resumed."""

    @property
    def has_encoded(self) -> bool:
        """Whether `land` would find a request."""
        return any(True for _ in self._landed())

    def begin(self, request: Request, images: Sequence[PlacedImage]) -> None:
        """Begin to encode `images`, which are in the prompt of `request`."""
        future = self._executor.submit(self._encode, request, images)
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

    def land(self) -> EncodedRequests:
        """Return the requests whose images have been encoded, with `prompt_images` set, or not."""
        encoded = EncodedRequests([], [])
        for request, future in list(self._landed()):
            del self._waiting[request]
            if error := future.exception():
                encoded.failed.append((request, error))
            else:
                request.prompt_images = future.result()
                encoded.ready.append(request)
        return encoded

    def close(self) -> None:
        """Stop after the image that is being encoded."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def check(self, requests: Collection[Request]) -> None:
        """Assert that no request that has ended waits here."""
        assert self._waiting.keys() <= set(requests), "images of an ended request are encoded"
        assert self._waiting.keys() >= self._paused, "a request is paused without images to encode"

    def _landed(self) -> Iterator[tuple[Request, Future[PromptImages]]]:
        """Yield the requests that can be queued."""
        for request, future in self._waiting.items():
            if future.done() and request not in self._paused:
                yield request, future

    def _encode(self, request: Request, images: Sequence[PlacedImage]) -> PromptImages:
        prompt, adapter = request.prompt, request.adapter
        change = self._adapters.of(adapter) if self._adapters and adapter else None
        digest = adapter.digest if adapter and change else ""
        placed = []
        for each in images:
            key = request.tenant, each.image.digest, digest
            encoded = self._kept.pop(key, None)
            if encoded is None:
                assert self._encoder is not None
                tokens = prompt[each.start : each.start + each.length]
                encoded = self._encoder.encode(each.image, tokens, change)
            self._kept[key] = encoded
            placed.append((each.start, each.length, encoded))
        while sum(encoded.num_bytes for encoded in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)
        return PromptImages.of(len(prompt), placed)


def encoding_fault(error: BaseException) -> tuple[str, str]:
    """Return the reason and a message for callers if encoding an image raised `error`."""
    if isinstance(error, NotFiniteError):
        return "ADAPTER_NOT_FINITE" if error.is_changed else "INVALID_FIELD", str(error)
    reason, why = explained(error, "encoding an image")
    is_of_adapter = isinstance(error, DamagedError | PackageError)
    return reason, f"the stored adapter cannot be loaded: {why}" if is_of_adapter else why
