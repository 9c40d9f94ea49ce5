"""Beam search over the real socket: what it goes with, what it counts, and how it is given up."""

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from loramux import Client, Generation
from loramux.aio import AsyncClient
from loramux.cli.app import run
from loramux.errors import DeadlineExceededError, FailedPreconditionError, LoramuxError
from tests.support.polling import eventually
from tests.support.server import RunningServer

EOS = 2
BEAMS: dict[str, Any] = {"num_beams": 4, "n": 3, "max_tokens": 8}
LONG: dict[str, Any] = {"num_beams": 8, "max_tokens": 3000, "ignore_eos": True}


@pytest.fixture(scope="module")
def client(tiny_server: RunningServer) -> Iterator[Client]:
    with tiny_server.client() as client:
        yield client


@pytest.fixture(scope="module")
def roomy_server(
    tmp_path_factory: pytest.TempPathFactory, roomy_base: Path, tiny_adapters: Path
) -> Iterator[RunningServer]:
    """A server on which a search can last for longer than anybody waits."""
    folder = tmp_path_factory.mktemp("server")
    with RunningServer(folder, roomy_base, "--adapters", str(tiny_adapters)) as server:
        yield server


def is_idle(server: RunningServer) -> bool:
    metrics = server.metrics()
    return not any(
        metrics[f"loramux_{gauge}"]
        for gauge in ("requests_running", "requests_waiting", "kv_blocks_used")
    )


def ended(server: RunningServer, outcome: str, adapter: str = "wide") -> float:
    series = f'loramux_requests_total{{adapter="{adapter}",outcome="{outcome}"}}'
    return server.metrics().get(series, 0.0)


@pytest.mark.parametrize("penalty", [0.0, 1.0, -0.5])
@pytest.mark.parametrize(
    "who",
    [
        {},
        {"adapter": "wide"},
        {"adapter": "wide", "scale": 0.5},
        {"adapters": {"small": 0.7, "wide": -0.5}},
    ],
    ids=["base", "adapter", "scaled", "mix"],
)
def test_a_score_is_how_likely_the_tokens_are(
    client: Client, who: dict[str, Any], penalty: float
) -> None:
    prompt = [40, 7, 5, 11, 90]
    done = client.generate(prompt, **who, **BEAMS, length_penalty=penalty)
    scores = [each.beam_score for each in done.completions]
    assert len(set(scores)) == 3
    assert scores == sorted(scores, key=lambda score: -(score or math.nan))
    for completion in done.completions:
        whole = [*prompt, *completion.token_ids]
        read = client.generate(whole, **who, prompt_logprobs=0, max_tokens=0).prompt_logprobs
        total = sum(position.chosen.logprob for position in read[len(prompt) :])
        length = len(completion.token_ids)
        assert completion.beam_score == pytest.approx(total / length**penalty, abs=1e-3)
    assert done.sampling["length_penalty"] == penalty
    assert (done.sampling["num_beams"], done.sampling["n"]) == (4, 3)
    assert (done.sampling["temperature"], done.sampling["early_stopping"]) == (0.0, False)


def test_a_stream_has_each_completion_in_one_piece(client: Client) -> None:
    done = client.generate("hello", adapter="wide", **BEAMS)
    chunks = list(client.stream("hello", adapter="wide", **BEAMS))
    assert [(each.index, each.text, each.token_ids, each.beam_score) for each in chunks] == [
        (each.index, each.text, each.token_ids, each.beam_score) for each in done.completions
    ]
    assert [each.finish_reason for each in chunks] == ["length"] * 3
    assert chunks[0].adapter == done.adapter
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == done.usage.completion_tokens


async def test_the_other_client_searches_too(tiny_server: RunningServer, client: Client) -> None:
    done = client.generate("hello", adapter="wide", **BEAMS)
    async with AsyncClient(tiny_server.target) as other:
        same = await other.generate("hello", adapter="wide", **BEAMS)
        chunks = [each async for each in other.stream("hello", adapter="wide", **BEAMS)]
    assert same.completions == done.completions
    assert [each.beam_score for each in chunks] == [each.beam_score for each in done.completions]


def test_the_command_line_searches(
    tiny_server: RunningServer, client: Client, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    arguments = [
        "loramux", "generate", "hello", "--beams=4", "--length-penalty=-2", "--early-stopping",
        "--max-tokens=8", f"--server={tiny_server.target}",
    ]  # fmt: skip
    options: dict[str, Any] = {"length_penalty": -2.0, "early_stopping": True, "max_tokens": 8}
    done = client.generate("hello", num_beams=4, **options)

    def printed(*more: str) -> str:
        monkeypatch.setattr("sys.argv", [*arguments, *more])
        with pytest.raises(SystemExit, match="0"):
            run()
        return capsys.readouterr().out

    assert printed() == done.text + "\n"
    reported = json.loads(printed("--json"))
    assert reported["completions"][0]["beam_score"] == done.completions[0].beam_score
    assert reported["sampling"] == done.sampling | {"seed": reported["sampling"]["seed"]}


def test_one_beam_is_no_search(client: Client) -> None:
    one = client.generate("hello", num_beams=1, temperature=0.0, max_tokens=8)
    plain = client.generate("hello", temperature=0.0, max_tokens=8)
    assert one.completions == plain.completions
    assert one.completions[0].beam_score is None


def test_end_tokens_end_where_they_may(client: Client) -> None:
    def tokens_of(**options: Any) -> list[tuple[int, ...]]:
        done = client.generate("hello", **{**BEAMS, **options})
        return [each.token_ids for each in done.completions]

    free = tokens_of(ignore_eos=True)
    assert {len(each) for each in free} == {8}
    end = free[0][2]
    stopped = tokens_of(stop_token_ids=[end])
    assert {each[-1] for each in stopped} == {end}
    assert all(end not in each[:-1] for each in stopped)
    late = tokens_of(stop_token_ids=[end], min_tokens=5)
    assert all(end not in each[:5] for each in late)
    assert late != stopped


def test_conversations_and_defaults_of_adapters(chat_server: RunningServer) -> None:
    with chat_server.client() as client:
        messages: Any = [{"role": "user", "content": "hello"}]
        done = client.chat(messages, adapter="plain", **BEAMS)
        assert len(done.completions) == 3
        assert done.usage.prompt_tokens > len("hello")
        with pytest.raises(FailedPreconditionError, match=r"\['\\x01'\].*omit num_beams"):
            client.chat(messages, adapter="own", **BEAMS)


def test_a_search_counts_as_one_request_and_all_its_tokens(tiny_server: RunningServer) -> None:
    prompt = [7 + number % 90 for number in range(40)]
    with tiny_server.client() as client:
        before = tiny_server.metrics()
        done = client.generate(prompt, adapter="rs", ignore_eos=True, **BEAMS)
        assert eventually(lambda: is_idle(tiny_server))
        after = tiny_server.metrics()

    def grown(series: str) -> float:
        return after[series] - before.get(series, 0.0)

    assert grown('loramux_requests_total{adapter="rs",outcome="ok"}') == 1
    assert grown('loramux_prompt_tokens_total{adapter="rs"}') == 40
    assert grown('loramux_time_to_first_token_seconds_count{adapter="rs"}') == 1
    assert grown("loramux_queue_seconds_count") == 1
    assert grown("loramux_prefix_cache_tokens_total") == 40
    num_made = 1 + 7 * 4  # the first step has a single beam
    assert done.usage.completion_tokens == num_made
    assert grown('loramux_generated_tokens_total{adapter="rs"}') == num_made
    assert grown("loramux_batch_requests_sum") == num_made
    # Beams have all but their last block in common with what was computed before.
    assert grown("loramux_batch_tokens_sum") < 40 + num_made * 16


def test_who_hangs_up_ends_the_search(roomy_server: RunningServer) -> None:
    before = ended(roomy_server, "cancelled")
    with ThreadPoolExecutor(1) as pool, roomy_server.client() as client:
        asked = pool.submit(client.generate, "hello", adapter="wide", **LONG)
        made = 'loramux_generated_tokens_total{adapter="wide"}'
        assert eventually(lambda: roomy_server.metrics().get(made, 0.0) > 30)
        client.close()
        with pytest.raises(LoramuxError):
            asked.result(timeout=60)
    assert eventually(lambda: ended(roomy_server, "cancelled") == before + 1)
    assert eventually(lambda: is_idle(roomy_server))
    with roomy_server.client() as client:
        assert client.generate("hello", adapter="wide", **BEAMS).text


def test_a_deadline_ends_the_search(roomy_server: RunningServer) -> None:
    with roomy_server.client() as client, pytest.raises(DeadlineExceededError):
        client.generate("hello", adapter="small", timeout=2, **LONG)
    # Whichever of the two is first to notice.
    assert eventually(
        lambda: ended(roomy_server, "cancelled", "small")
        + ended(roomy_server, "deadline_exceeded", "small") == 1
    )  # fmt: skip
    assert eventually(lambda: is_idle(roomy_server))


def test_searches_and_others_share_a_busy_engine(roomy_server: RunningServer) -> None:
    alone: list[Generation] = []
    with roomy_server.client() as client:
        alone += [client.generate(f"number {i}", adapter="rs", **BEAMS) for i in range(4)]
        with ThreadPoolExecutor(14) as pool:
            others = [
                pool.submit(client.generate, f"other {i}", n=8, max_tokens=24, ignore_eos=True)
                for i in range(10)
            ]
            searches = [
                pool.submit(client.generate, f"number {i}", adapter="rs", **BEAMS) for i in range(4)
            ]
            together = [each.result() for each in searches]
            assert all(len(each.result().completions) == 8 for each in others)
    for one, other in zip(alone, together, strict=True):
        assert [each.token_ids for each in one.completions] == [
            each.token_ids for each in other.completions
        ]
