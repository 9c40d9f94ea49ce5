"""What /metrics says, and what it never says."""

import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from loramux import Client
from loramux.errors import InvalidArgumentError, LoramuxError, NotFoundError
from tests.support.polling import eventually
from tests.support.server import RunningServer
from tests.support.unread import held

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 6, "ignore_eos": True}
NUM_ADAPTERS = 100
MAX_LABELS = 64
NEVER_THE_SAME = (
    "loramux_loop_", "loramux_lora_requests_info", "loramux_resident_memory_bytes"
)  # fmt: skip
PER_ADAPTER = [
    "loramux_requests_total",
    "loramux_prompt_tokens_total",
    "loramux_generated_tokens_total",
    "loramux_request_seconds_count",
    "loramux_time_to_first_token_seconds_count",
    "loramux_inter_token_seconds_count",
]


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_adapters: Path
) -> Iterator[RunningServer]:
    """A server of many names for one adapter, which is enough for labels."""
    folder = tmp_path_factory.mktemp("server")
    for number in range(NUM_ADAPTERS):
        shutil.copytree(tiny_adapters / "single", folder / "adapters" / f"a{number:02d}")
    # Names that are labels with a meaning of their own.
    for name in ("base", "other", "none"):
        shutil.copytree(tiny_adapters / "small", folder / "adapters" / name)
    with RunningServer(folder, tiny_base, "--adapters", str(folder / "adapters")) as server:
        yield server


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with server.client() as client:
        yield client


def labels(samples: dict[str, float], metric: str) -> set[str]:
    """The values of the label `adapter` that `metric` has."""
    found = (re.fullmatch(metric + r'\{.*\badapter="([^"]*)".*\}', name) for name in samples)
    return {match[1] for match in found if match}


def growth(server: RunningServer, act: Callable[[], object]) -> dict[str, float]:
    """Return by how much each sample grew while `act` ran; what did not is left out.

    So is what is never the same: dates, the event loop, memory.
    """
    before = server.metrics()
    act()
    # The last report of the engine may still be on its way.
    assert eventually(lambda: not server.metrics()["loramux_requests_running"])
    after = server.metrics()
    return {
        name: value - before.get(name, 0.0)
        for name, value in after.items()
        if value != before.get(name, 0.0)
        and not name.startswith(NEVER_THE_SAME)
        and "_created" not in name
    }


def test_counters_add_up_over_a_mixed_batch(server: RunningServer, client: Client) -> None:
    requests = [("hello", None), ("good day", "a00"), ("hi", "a01"), ("hello", "a00")]

    def act() -> None:
        with ThreadPoolExecutor(len(requests)) as pool:
            list(pool.map(lambda r: client.generate(r[0], adapter=r[1], **GREEDY), requests))

    grown = growth(server, act)
    for adapter, count, prompt in (("base", 1, 6), ("a00", 2, 15), ("a01", 1, 3)):
        assert grown[f'loramux_requests_total{{adapter="{adapter}",outcome="ok"}}'] == count
        assert grown[f'loramux_prompt_tokens_total{{adapter="{adapter}"}}'] == prompt
        assert grown[f'loramux_generated_tokens_total{{adapter="{adapter}"}}'] == 6 * count
        assert grown[f'loramux_request_seconds_count{{adapter="{adapter}"}}'] == count
        assert grown[f'loramux_time_to_first_token_seconds_count{{adapter="{adapter}"}}'] == count
        assert grown[f'loramux_inter_token_seconds_count{{adapter="{adapter}"}}'] == 5 * count
    assert grown['loramux_tenant_requests_total{outcome="ok",tenant="public"}'] == 4
    assert grown['loramux_tenant_prompt_tokens_total{tenant="public"}'] == 24
    assert grown['loramux_tenant_generated_tokens_total{tenant="public"}'] == 24
    assert grown["loramux_queue_seconds_count"] == len(requests)
    # Each token comes out of one step, in which others may come too, of the same request if they
    # were drafted.
    drafted, held = (
        grown.get(f"loramux_draft_{what}_total", 0.0) for what in ("tokens", "accepted_tokens")
    )
    num_rows = 6 * len(requests) - held
    steps = grown["loramux_step_seconds_count"]
    assert 1 <= steps <= num_rows
    assert grown["loramux_batch_requests_sum"] == num_rows
    assert grown["loramux_batch_tokens_sum"] == num_rows + drafted + 24 - len(requests)
    found = sum(
        grown.get(f'loramux_adapter_cache_{how}_total{{tier="device"}}', 0.0)
        for how in ("hits", "misses")
    )
    assert found == 3


def test_n_completions_are_one_request(server: RunningServer, client: Client) -> None:
    grown = growth(server, lambda: client.generate("hello", n=3, seed=1, max_tokens=4,
                                                   ignore_eos=True))  # fmt: skip
    assert grown['loramux_requests_total{adapter="base",outcome="ok"}'] == 1
    assert grown['loramux_prompt_tokens_total{adapter="base"}'] == 6
    assert grown['loramux_generated_tokens_total{adapter="base"}'] == 12


def test_a_refusal_is_counted_by_its_status(server: RunningServer, client: Client) -> None:
    def act() -> None:
        with pytest.raises(InvalidArgumentError):
            client.generate("hello", adapter="a00", temperature=-1.0)
        with pytest.raises(NotFoundError):
            client.generate("hello", adapter="nobody")

    grown = growth(server, act)
    assert grown == {
        'loramux_requests_total{adapter="none",outcome="invalid_argument"}': 1,
        'loramux_requests_total{adapter="none",outcome="not_found"}': 1,
        'loramux_tenant_requests_total{outcome="invalid_argument",tenant="public"}': 1,
        'loramux_tenant_requests_total{outcome="not_found",tenant="public"}': 1,
    }


def test_uploads_are_counted_by_their_outcome(
    server: RunningServer, client: Client, tiny_adapters: Path
) -> None:
    def act() -> None:
        client.adapters.upload("counted", tiny_adapters / "rs")
        with pytest.raises(LoramuxError):
            client.adapters.upload("a00", tiny_adapters / "rs")

    grown = growth(server, act)
    assert grown['loramux_uploads_total{outcome="ok"}'] == 1
    assert grown['loramux_uploads_total{outcome="failed_precondition"}'] == 1
    assert grown["loramux_adapters_registered"] == 1
    # The one token that an upload is tried out with is nobody's request.
    assert not any(name.startswith("loramux_requests_total") for name in grown)
    client.adapters.delete("counted", wait=True)


def test_a_deleted_adapter_gives_its_memory_back(
    server: RunningServer, client: Client, tiny_adapters: Path
) -> None:
    def held() -> list[float]:
        metrics = server.metrics()
        names = ("adapters_resident", "adapter_bytes")
        return [
            metrics[f'loramux_{name}{{tier="{tier}"}}']
            for name in names
            for tier in ("host", "device")
        ]

    before = held()
    client.adapters.upload("heavy", tiny_adapters / "wide")
    assert eventually(lambda: all(now > then for now, then in zip(held(), before, strict=True)))
    client.adapters.delete("heavy")
    assert eventually(lambda: held() == before)


def lora_requests(server: RunningServer) -> dict[str, str]:
    """The labels of the one series that names the adapters at hand."""
    (name,) = [name for name in server.metrics() if name.startswith("loramux_lora_requests_info")]
    return dict(re.findall(r'(\w+)="([^"]*)"', name))


def test_adapters_at_hand_are_named_to_who_chooses_between_servers(
    server: RunningServer, client: Client, tiny_adapters: Path
) -> None:
    assert lora_requests(server)["max_lora"] == "64"
    client.adapters.upload("at-hand", tiny_adapters / "wide")
    client.generate("hi", adapter="at-hand", **GREEDY)
    # The other adapters of the device, if any, were asked for before.
    running = lora_requests(server)["running_lora_adapters"].split(",")
    assert running[0] == "at-hand"
    assert lora_requests(server)["waiting_lora_adapters"] == ""
    client.adapters.delete("at-hand", wait=True)
    assert "at-hand" not in lora_requests(server)["running_lora_adapters"]


def test_used_and_all_kv_blocks_make_the_ratio_that_routers_read(
    server: RunningServer, client: Client
) -> None:
    def is_told() -> bool:
        stream = client.stream("hello", n=8, max_tokens=200, ignore_eos=True)
        next(stream)
        metrics = server.metrics()
        stream.close()  # type: ignore[attr-defined]
        used, ratio = metrics["loramux_kv_blocks_used"], metrics["loramux_kv_cache_usage_ratio"]
        return ratio == used / metrics["loramux_kv_blocks"] > 0

    # A stream may have ended before it is looked at, and a report may come between two samples.
    assert eventually(is_told)
    assert eventually(lambda: server.metrics()["loramux_kv_cache_usage_ratio"] == 0)


def test_memory_is_reported_by_process_and_tier(server: RunningServer) -> None:
    metrics = server.metrics()
    for process in ("frontend", "engine"):
        assert metrics[f'loramux_resident_memory_bytes{{process="{process}"}}'] > 1 << 20
    for tier in ("device", "host"):
        held = metrics[f'loramux_adapter_bytes{{tier="{tier}"}}']
        assert held <= metrics[f'loramux_adapter_memory_bytes{{tier="{tier}"}}']
    assert 1 << 20 < metrics['loramux_adapter_memory_bytes{tier="host"}'] <= 4 << 30
    assert metrics["loramux_quarantined"] == 0


def test_the_engine_was_started_once(server: RunningServer) -> None:
    metrics = server.metrics()
    assert metrics["loramux_engine_starts_total"] == 1
    assert metrics["loramux_engine_up"] == 1
    assert metrics["loramux_adapters_registered"] == NUM_ADAPTERS + 3


def test_a_bounded_number_of_adapters_have_series_of_their_own(
    server: RunningServer, client: Client
) -> None:
    names = [f"a{number:02d}" for number in range(NUM_ADAPTERS)]

    def act() -> None:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda name: client.generate("hi", adapter=name, **GREEDY), names))

    grown = growth(server, act)
    samples = server.metrics()
    for metric in PER_ADAPTER:
        own = labels(samples, metric) - {"other", "base", "none"}
        assert own <= set(names)
        assert len(own) <= MAX_LABELS
        assert "other" in labels(samples, metric)
    counted = sum(v for k, v in grown.items() if k.startswith("loramux_generated_tokens_total"))
    assert counted == 6 * NUM_ADAPTERS


def test_a_busy_adapter_gets_a_series_in_place_of_an_idle_one(
    server: RunningServer, client: Client
) -> None:
    names = [f"a{number:02d}" for number in range(NUM_ADAPTERS)]
    own = labels(server.metrics(), "loramux_requests_total")
    busy = next(name for name in names if name not in own)
    for _ in range(8):
        client.generate("hi", adapter=busy, **GREEDY)
    own = labels(server.metrics(), "loramux_requests_total")
    assert busy in own
    assert len(own - {"other", "base", "none"}) <= MAX_LABELS


def test_a_deleted_adapter_has_no_series(
    server: RunningServer, client: Client, tiny_adapters: Path
) -> None:
    client.adapters.upload("passing", tiny_adapters / "rs")
    for _ in range(10):
        client.generate("hi", adapter="passing", **GREEDY)
    assert "passing" in labels(server.metrics(), "loramux_requests_total")
    with held(server.target, max_tokens=200, adapter="passing") as stream:
        client.adapters.delete("passing")
        # The rest of a request of it counts, but no longer under its name.
        stream.read()
    assert len(stream.tokens[0]) == 200
    samples = server.metrics()
    for metric in PER_ADAPTER:
        assert "passing" not in labels(samples, metric)
    assert not any("passing" in name for name in samples)


def test_names_that_nobody_registered_are_no_labels(server: RunningServer, client: Client) -> None:
    for number in range(200):
        with pytest.raises(LoramuxError):
            client.generate("hello", adapter=f"junk-{number}")
        with pytest.raises(LoramuxError):
            client.generate("hello", adapter=f'junk"{number}\n')
    assert not any("junk" in name for name in server.metrics())


def test_an_adapter_called_like_a_label_counts_with_the_others(
    server: RunningServer, client: Client
) -> None:
    for name in ("base", "other", "none"):
        grown = growth(server, lambda name=name: client.generate("hi", adapter=name, **GREEDY))  # type: ignore[misc]
        assert labels(grown, "loramux_requests_total") == {"other"}


def test_no_prompt_and_no_path_is_in_the_metrics(server: RunningServer, client: Client) -> None:
    client.generate("a secret of mine", request_id="my-id", **GREEDY)
    page = "\n".join(server.metrics())
    for secret in ("secret", "my-id", "sha256", str(server.log.parent)):
        assert secret not in page


def test_equal_beginnings_show_as_hits_of_the_prefix_cache(
    server: RunningServer, client: Client
) -> None:
    prompt = [7 + i % 40 for i in range(50)]
    first = client.generate(prompt, adapter="a00", **GREEDY)
    answers = []

    def again() -> None:
        answers.append(client.generate(prompt, adapter="a00", **GREEDY).token_ids)

    grown = growth(server, again)
    assert grown["loramux_prefix_cache_tokens_total"] == 50
    assert grown["loramux_prefix_cache_hit_tokens_total"] == 48  # of three blocks
    assert answers == [first.token_ids]
    assert "loramux_prefix_cache_hit_tokens_total" not in growth(
        server, lambda: client.generate(prompt, **GREEDY)
    )


def test_what_was_written_before_shows_as_drafts(server: RunningServer, client: Client) -> None:
    answers = set()

    def again() -> None:
        for _ in range(3):
            answers.add(client.generate([9, 8, 7, 6, 5], adapter="a01", **GREEDY).token_ids)

    def are_counted() -> bool:
        grown = growth(server, again)
        accepted = grown.get("loramux_draft_accepted_tokens_total", 0.0)
        return 0 < accepted <= grown["loramux_draft_tokens_total"]

    # Where the machine is busy, drafts can look too dear for a while.
    assert any(are_counted() for _ in range(6))
    assert len(answers) == 1
