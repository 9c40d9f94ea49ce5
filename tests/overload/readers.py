"""Streams that nobody reads, beside streams that are read: what these notice of those."""

from contextlib import ExitStack
from dataclasses import dataclass

from loramux.v1.generation_pb2 import GenerateRequest, SamplingParams
from tests.chaos import percentile
from tests.overload.generator import Generator
from tests.support.polling import eventually
from tests.support.server import RunningServer
from tests.support.unread import Unread

NUM_UNREAD = 8
"""Completions of each stream that is not read."""
START_SECONDS = 60.0
"""Until all of those are paused."""


@dataclass(frozen=True)
class Beside:
    """Seconds between the pieces of streams that are read."""

    num_stalled: int
    without: list[float]
    beside: list[float]
    """The same while others are not read."""

    @property
    def ratio(self) -> float:
        """By how many times the 99th percentile is longer."""
        return percentile(self.beside, 0.99) / percentile(self.without, 0.99)

    def row(self) -> dict[str, object]:
        row: dict[str, object] = {"stalled": self.num_stalled}
        for name, gaps in (("without", self.without), ("beside", self.beside)):
            row[f"pieces {name}"] = len(gaps)
            row[f"p50 ms {name}"] = round(1000 * percentile(gaps, 0.5), 2)
            row[f"p99 ms {name}"] = round(1000 * percentile(gaps, 0.99), 2)
        return row | {"p99 times": round(self.ratio, 3)}


def beside_stalled(
    server: RunningServer, generator: Generator, *, num_stalled: int, num_fast: int, rounds: int,
    seconds: float, max_tokens: int,
) -> Beside:  # fmt: skip
    """Read streams for so many `seconds` without others, then beside them, and so on.

    Args:
        server: Is asked; nobody else may ask it.
        generator: Reads.
        num_stalled: Streams that are not read, of NUM_UNREAD completions each.
        num_fast: Streams that are, at once.
        rounds: How often.
        seconds: Of each half of a round.
        max_tokens: Of a completion that is not read: more than its server keeps for it.
    """
    without: list[float] = []
    beside: list[float] = []
    sampling = SamplingParams(max_tokens=max_tokens, n=NUM_UNREAD, ignore_eos=True)
    paused = num_stalled * NUM_UNREAD
    for _ in range(rounds):
        without += generator.gaps(num_fast, seconds).result()
        with ExitStack() as exits:
            for number in range(num_stalled):
                request = GenerateRequest(prompt_token_ids=[5 + number], sampling=sampling)
                exits.enter_context(Unread(server.target, request))
            assert eventually(lambda: _paused(server) == paused, START_SECONDS), server.metrics()
            beside += generator.gaps(num_fast, seconds).result()
            assert _paused(server) == paused, "some were let go meanwhile"
        assert eventually(lambda: _paused(server) == 0)
    return Beside(num_stalled, without, beside)


def _paused(server: RunningServer) -> float:
    return server.metrics()["loramux_requests_paused"]
