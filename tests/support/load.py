"""Streams, one after the other from several threads, and what became of each."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from loramux import Client
from loramux.errors import DeadlineExceededError, LoramuxError

Ask = tuple[str | tuple[int, ...], str | None]
"""A prompt, and the adapter that it is for."""
Answer = Callable[[Ask, int], tuple[int, ...]]
"""What has to come of it, in so many tokens."""
TIMEOUT = 60.0
"""A stream that takes so long hangs."""


@dataclass(frozen=True)
class Stream:
    """One stream, from begin to end."""

    begin: float
    end: float
    num_tokens: int
    error: LoramuxError | None
    is_right: bool
    """Whether its tokens are those that had to come, as far as they came."""

    @property
    def hung(self) -> bool:
        return isinstance(self.error, DeadlineExceededError)


class Load:
    """Keeps `num_threads` streams under way as long as the block runs."""

    def __init__(
        self, connect: Callable[[], Client], answer: Answer, *, num_threads: int = 8,
        asks: Callable[[random.Random], Ask], max_tokens: tuple[int, int] = (5, 120),
    ) -> None:  # fmt: skip
        """Prepare.

        Args:
            connect: Returns what a thread calls from now on; called again after each failure.
            answer: What has to come.
            num_threads: Streams at once.
            asks: Makes what is asked.
            max_tokens: Least and most tokens of a stream.
        """
        self.streams: list[Stream] = []
        self._connect = connect
        self._answer = answer
        self._asks = asks
        self._max_tokens = max_tokens
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,)) for number in range(num_threads)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        choice = random.Random(number)
        client = self._connect()
        while not self._is_over.is_set():
            stream = self._stream(client, choice)
            self.streams.append(stream)
            if stream.error:
                client.close()
                self._is_over.wait(choice.uniform(0.05, 0.15))
                client = self._connect()
        client.close()

    def _stream(self, client: Client, choice: random.Random) -> Stream:
        ask, count = self._asks(choice), choice.randint(*self._max_tokens)
        tokens: tuple[int, ...] = ()
        failure = None
        begin = time.monotonic()
        try:
            for chunk in client.stream(
                ask[0], adapter=ask[1], timeout=TIMEOUT, max_tokens=count, temperature=0.0,
                ignore_eos=True,
            ):  # fmt: skip
                tokens += chunk.token_ids
        except LoramuxError as error:
            failure = error
        end = time.monotonic()
        right = self._answer(ask, count)[: len(tokens)] == tokens
        is_whole = failure is not None or len(tokens) == count
        return Stream(begin, end, len(tokens), failure, right and is_whole)
