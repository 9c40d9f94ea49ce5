"""The engine requests of one call: one per completion or text."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic

from loramux.errors import LoramuxError
from loramux_server.engine_link.client import EngineClient
from loramux_server.engine_link.mailbox import Item, Mailbox
from loramux_server.waiting_room.place import Place
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Started


class Submission(Generic[Item]):
    """The requests of one call, and the mailbox for their answers."""

    def __init__(
        self, engine: EngineClient, on_started: Callable[[Started], None], interval: int = 1
    ) -> None:
        """Prepare; nothing is submitted yet.

        Args:
            engine: Runs the requests.
            on_started: Called when a request leaves the engine's queue.
            interval: Tokens of a completion that wake the reader; see `Mailbox`.
        """
        self._engine = engine
        self.ids: list[int] = []
        """The engine's ids, in the order of the requests; filled in by `running`."""
        self.mailbox = Mailbox[Item](on_started, self._pause, interval)

    @contextmanager
    def running(self, asks: Iterable[Ask], *, seconds_left: float, place: Place) -> Iterator[None]:
        """Submit the requests `asks`; at the end of the block cancel those still open.

        Args:
            asks: The requests.
            seconds_left: Until the deadline.
            place: The call's place in the waiting room.
        """
        try:
            for index, ask in enumerate(asks):
                self.ids.append(
                    self._engine.submit(
                        self.mailbox,
                        index,
                        ask,
                        timeout=seconds_left,
                        weight=place.weight,
                        priority=place.priority,
                    )
                )
            yield
        finally:
            self._cancel()

    def finish(self, index: int) -> None:
        """End the request at `index` early, because its answer is complete."""
        self._engine.finish(self.ids[index])

    def evict(self, error: LoramuxError) -> None:
        """Fail with `error` and cancel at once, when displaced from the waiting room."""
        self.mailbox.fail(error)
        self._cancel()

    def _cancel(self) -> None:
        for request_id in self.ids:
            self._engine.cancel(request_id)

    def _pause(self, is_full: bool) -> None:
        self._engine.pause(self.ids, is_full)
