"""Batch jobs of a tenant do not delay its other requests."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from loramux import Client
from loramux.errors import ResourceExhaustedError
from tests.support.fake import completion
from tests.support.fake_server import FakeServer
from tests.support.polling import eventually

MAX_RUNNING = 2
MAX_WAITING = 10
JOB = list(range(10, 10 + MAX_WAITING))
"""Requests of a batch job, each by the first token of its prompt."""
MINE = 40


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    with FakeServer(
        tmp_path_factory.mktemp("server"), "--block-size", "4", "--max-batch-tokens", "128",
        "--max-running", str(MAX_RUNNING), "--max-waiting", str(MAX_WAITING),
        module="tests.support.queueing_engine", step_seconds=0.002, token_seconds=0.0,
    ) as server:  # fmt: skip
        yield server


@contextmanager
def busy(client: Client) -> Iterator[None]:
    """Let other requests run, so that nothing starts within the block."""
    with ExitStack() as exits:
        for number in range(MAX_RUNNING):
            stream = client.stream([50 + number], max_tokens=1500, ignore_eos=True)
            next(stream)
            exits.callback(stream.close)  # type: ignore[attr-defined]
        yield


class Crowd:
    """Requests that are sent side by side."""

    def __init__(self, client: Client, pool: ThreadPoolExecutor) -> None:
        self._client = client
        self._pool = pool
        self.ended: list[int] = []
        """In this order."""

    def ask(self, number: int, priority: int, max_tokens: int = 20) -> Future[None]:
        return self._pool.submit(self._ask, number, priority, max_tokens)

    def waits(self, count: int) -> None:
        assert eventually(lambda: self._client.load().waiting_requests == count)

    def _ask(self, number: int, priority: int, max_tokens: int) -> None:
        prompt = [number, 9, 8]
        answer = self._client.generate(
            prompt, max_tokens=max_tokens, temperature=0, ignore_eos=True, priority=priority
        )
        self.ended.append(number)
        wanted = completion(prompt, 0, max_tokens, eos=False)
        assert list(answer.completions[0].token_ids) == wanted


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def crowd(client: Client) -> Iterator[Crowd]:
    with ThreadPoolExecutor(2 * MAX_WAITING) as pool:
        yield Crowd(client, pool)


@pytest.mark.parametrize(("priority", "is_first"), [(0, True), (11, False)])
def test_a_request_goes_before_those_of_worse_priority(
    client: Client, crowd: Crowd, priority: int, is_first: bool
) -> None:
    job, late = JOB[:-2], JOB[-1]
    with busy(client):
        calls = [crowd.ask(number, priority=10) for number in job]
        crowd.waits(len(job))
        calls.append(crowd.ask(MINE, priority, max_tokens=1))
        crowd.waits(len(job) + 1)
        calls.append(crowd.ask(late, priority=10))
        crowd.waits(len(job) + 2)
    for call in calls:
        call.result()
    # Two run at once.
    assert crowd.ended.index(MINE) in ((0, 1) if is_first else (len(job), len(job) + 1))


def test_in_a_full_queue_a_better_priority_takes_the_place_of_a_worse_one(
    client: Client, crowd: Crowd
) -> None:
    with busy(client):
        calls = [crowd.ask(number, priority=10) for number in JOB]
        crowd.waits(MAX_WAITING)
        with pytest.raises(ResourceExhaustedError, match=f"{MAX_WAITING} requests may wait"):
            crowd.ask(MINE, priority=10).result()
        mine = crowd.ask(MINE, priority=0, max_tokens=1)
        assert eventually(lambda: any(call.done() for call in calls))
        crowd.waits(MAX_WAITING)
    mine.result()
    (error,) = filter(None, [call.exception() for call in calls])
    assert isinstance(error, ResourceExhaustedError)
    assert error.reason == "QUEUE_FULL"
    assert str(error) == "the queue is full, and a request of priority 0 arrived"
    assert crowd.ended.index(MINE) in (0, 1)
