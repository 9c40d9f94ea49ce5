"""An event loop beside threads that have work for one."""

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

Result = TypeVar("Result")


class Loop:
    """Runs in a thread of its own as long as the block does; other threads share it.

    gRPC hands what comes for any loop of a process to one of them, and fails where that is for
    another one that was closed. So there is no loop for each piece of work.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Return what comes of `work`; raises what it raises."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
