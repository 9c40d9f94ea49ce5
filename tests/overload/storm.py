"""A crowd that tries again, at a server with too much to do whose engine dies, too.

The client does not try again what was refused, but what an engine did not take that was away, as
often as its budget allows. What is offered in all must not be much more than what was asked for;
and when the crowd has gone the server is what it was.
"""

import time
from dataclasses import dataclass

from tests.overload.generator import Answer, Asking, Generator
from tests.overload.levels import find_pace
from tests.support.server import RunningServer

STEADY = 0.8
"""Times of what can be served, before and after the storm."""


@dataclass(frozen=True)
class Storm:
    """What a storm did."""

    factor: float
    """Of what can be served."""
    num_processes: int
    """Each has a budget of its own for trying again."""
    before: list[Answer]
    during: list[Answer]
    num_attempts: int
    """Calls of the crowd that came to the server."""
    after: list[Answer]
    """Of the steady load: the first came when the crowd sent its last."""
    recovery: float
    """Seconds that the server has for being what it was."""

    @property
    def attempts_per_call(self) -> float:
        return self.num_attempts / len(self.during)

    @property
    def recovered(self) -> float:
        """What part of the later ones was served after the storm, by that before it."""
        begin = min(answer.due for answer in self.after) + self.recovery
        return _served([a for a in self.after if a.due >= begin]) / _served(self.before)

    def row(self) -> dict[str, object]:
        served = sum(not answer.reason for answer in self.during)
        return {
            "load": f"{self.factor:g}x",
            "processes": self.num_processes,
            "calls": len(self.during),
            "attempts": self.num_attempts,
            "attempts for a call": round(self.attempts_per_call, 3),
            "served": served,
            "served before, part": round(_served(self.before), 3),
            f"served after {self.recovery:g} s, by that": round(self.recovered, 3),
        }


def _served(answers: list[Answer]) -> float:
    return sum(not answer.reason for answer in answers) / max(1, len(answers))


def storm(
    server: RunningServer, asking: Asking, steady: Generator, *, factor: float, count: int,
    seconds: float, deadline: float, recovery: float, num_processes: int,
) -> Storm:  # fmt: skip
    """Let a crowd come, kill the engine, and look at what is served before and after.

    Args:
        server: Is asked.
        asking: What the crowd asks, and by how many clients in each process.
        steady: Asks before and after.
        factor: Times of what can be served that the crowd asks for.
        count: Requests that run at once.
        seconds: How long the crowd comes; its engine has to be back by then.
        deadline: Seconds that the crowd gives each request.
        recovery: Seconds after which all has to be as before.
        num_processes: Of the crowd.
    """
    pace = find_pace(steady, count, seconds / 4)
    rate = STEADY * pace.capacity
    before = steady.offer(rate, seconds / 2, pace.deadline, 0).result()
    with Generator(asking, num_processes) as crowd:
        crowd.ready()
        attempts = _num_requests(server)
        end = time.monotonic() + seconds
        each = factor * pace.capacity / num_processes
        calls = [crowd.offer(each, seconds, deadline, seed) for seed in range(1, num_processes + 1)]
        time.sleep(seconds / 10)
        server.kill_engine()
        time.sleep(max(0.0, end - time.monotonic()))
        after = steady.offer(rate, recovery + seconds / 2, pace.deadline, 0).result()
        during = [answer for call in calls for answer in call.result()]
    num_attempts = _num_requests(server) - attempts - len(after)
    return Storm(factor, num_processes, before, during, num_attempts, after, recovery)


def _num_requests(server: RunningServer) -> int:
    metrics = server.metrics().items()
    return int(sum(n for name, n in metrics if name.startswith("loramux_requests_total{")))
