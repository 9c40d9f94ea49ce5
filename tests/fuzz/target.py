"""Something that takes input, and the figures of what it made of it."""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

MAX_FINDINGS = 50
BATCH = 200
"""Examples that hypothesis makes before it begins anew with another seed."""


class FindingError(AssertionError):
    """An input came to something that no input may come to."""


@dataclass(frozen=True)
class Target:
    """Something to try."""

    name: str
    inputs: st.SearchStrategy[Any]
    attempt: Callable[[Any], str]
    """Takes an input and returns in a word what came of it; raises on what must never come."""
    pid: int | None = None
    """The process whose memory counts; None means this one."""


@dataclass
class Result:
    """What came of all inputs of a target."""

    name: str
    outcomes: dict[str, int] = field(default_factory=dict)
    findings: list[dict[str, str]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    rss_growth: int = 0
    """Bytes that the process grew by after the first tenth of the inputs."""

    def row(self) -> dict[str, object]:
        """The figures, as a table and JSON show them."""
        ordered = sorted(self.seconds) or [0.0]
        return {
            "target": self.name,
            "inputs": len(self.seconds),
            "findings": len(self.findings),
            "p99 ms": round(1e3 * ordered[int(0.99 * (len(ordered) - 1))], 2),
            "max ms": round(1e3 * ordered[-1], 2),
            "RSS growth MiB": round(self.rss_growth / 2**20, 1),
        }


def fuzz(target: Target, seconds: float, corpus: Path | None = None, first_seed: int = 0) -> Result:
    """Try the inputs kept in `corpus`, then invented ones for so many seconds.

    An input that should not have come to what it came to is kept in `corpus`, for the next time.
    """
    result = Result(target.name)
    process = psutil.Process(target.pid)
    begin = time.monotonic()
    base: list[int] = []

    def one(given_input: Any) -> None:
        _try(target, given_input, result, corpus)
        if not base and time.monotonic() > begin + seconds / 10:
            base.append(process.memory_info().rss)

    for kept in _kept(target.name, corpus):
        one(kept)
    number = first_seed

    def is_over() -> bool:
        # Where one input takes longer than all may, it is tried.
        return bool(result.seconds) and time.monotonic() >= begin + seconds

    while not is_over():
        _batch(target.inputs, one, number, is_over)
        number += 1
    result.rss_growth = process.memory_info().rss - base[0] if base else 0
    return result


def _batch(
    inputs: st.SearchStrategy[Any], one: Callable[[Any], None], n: int, is_over: Callable[[], bool]
) -> None:
    @seed(n)
    @settings(
        max_examples=BATCH, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(inputs)
    def run(given_input: Any) -> None:
        if not is_over():
            one(given_input)

    run()


def _try(target: Target, given_input: Any, result: Result, corpus: Path | None) -> None:
    begin = time.perf_counter()
    try:
        outcome = target.attempt(given_input)
    except Exception as error:  # whatever it is, it is what is looked for
        outcome = "finding"
        if len(result.findings) < MAX_FINDINGS:
            result.findings.append({"input": repr(given_input)[:2000], "error": repr(error)[:500]})
            _keep(target.name, given_input, corpus)
    result.seconds.append(time.perf_counter() - begin)
    result.outcomes[outcome] = result.outcomes.get(outcome, 0) + 1


def _keep(name: str, given_input: Any, corpus: Path | None) -> None:
    if corpus is None or not isinstance(given_input, bytes):
        return
    folder = corpus / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha256(given_input).hexdigest()[:16]).write_bytes(given_input)


def _kept(name: str, corpus: Path | None) -> Iterator[bytes]:
    if corpus is not None:
        for path in sorted((corpus / name).glob("*")):
            yield path.read_bytes()
