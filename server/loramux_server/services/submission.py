"""What one call has at the engine: a request for each completion, or for each text."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic

from loramux.errors import LoramuxError
from loramux_server.engine_link.client import EngineClient
from loramux_server.engine_link.mailbox import Item, Mailbox
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Started


class Submission(Generic[Item]):
    """The requests of one call, and where their answers come in."""

    def __init__(
        self, engine: EngineClient, on_started: Callable[[Started], None], interval: int = 1
    ) -> None:
        """Submit nothing yet.

        Args:
            engine: Does what is asked.
            on_started: Told when each request left the engine's queue.
            interval: Tokens that are taken at once; see `Mailbox`.
        """
        self._engine = engine
        self.ids: list[int] = []
        """The engine's ids, in the order of what is asked; filled in by `running`."""
        self.mailbox = Mailbox[Item](on_started, self._pause, interval)

    @contextmanager
    def running(self, asked: Iterable[Ask], *, seconds_left: float, weight: int) -> Iterator[None]:
        """Start what is `asked`, and end for the engine what the block leaves open.

        Args:
            asked: The requests.
            seconds_left: Until the deadline.
            weight: The tenant's.
        """
        try:
            for index, ask in enumerate(asked):
                self.ids.append(
                    self._engine.submit(
                        self.mailbox, index, ask, timeout=seconds_left, weight=weight
                    )
                )
            yield
        finally:
            self._cancel()

    def finish(self, index: int) -> None:
        """End the request at `index`, whose answer is as long as it has to be."""
        self._engine.finish(self.ids[index])

    def give_way(self, error: LoramuxError) -> None:
        """End with `error`, at once: whoever takes the place in the queue is sent there next."""
        self.mailbox.fail(error)
        self._cancel()

    def _cancel(self) -> None:
        for request_id in self.ids:
            self._engine.cancel(request_id)

    def _pause(self, is_full: bool) -> None:
        self._engine.pause(self.ids, is_full)
