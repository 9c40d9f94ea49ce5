"""What `loramux top` makes of two looks at a server."""

import dataclasses
import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from loramux._rates import rates_of
from loramux.cli.top import View, render, top
from loramux.types import AdapterStatus, ServerInfo, ServerLoad, TierLoad

TIER = TierLoad(2, 3_000_000, 9_000_000, 10, 4, 1, 0)
BEFORE = ServerLoad(
    uptime_seconds=10.0, running_requests=0, waiting_requests=0, kv_blocks=100, kv_blocks_used=0,
    device=TIER, host=TIER, requests=5, prompt_tokens=50, generated_tokens=500, first_tokens=5,
    first_token_seconds=1.0, gaps=495, gap_seconds=9.9, steps=600, step_seconds=6.0,
    step_requests=700, step_adapters=650,
)  # fmt: skip


def later(**changes: float) -> ServerLoad:
    return dataclasses.replace(BEFORE, **changes)  # type: ignore[arg-type]


def test_rates_are_what_happened_in_between() -> None:
    rates = rates_of(
        BEFORE,
        later(
            uptime_seconds=12.0, requests=9, generated_tokens=700, prompt_tokens=54, steps=650,
            step_requests=850, step_adapters=750, step_seconds=6.5, first_tokens=9,
            first_token_seconds=3.0, gaps=691, gap_seconds=12.84,
        ),
    )  # fmt: skip
    assert (rates.seconds, rates.requests_per_second, rates.tokens_per_second) == (2.0, 2.0, 100.0)
    assert (rates.prompt_tokens_per_second, rates.steps_per_second) == (2.0, 25.0)
    assert (rates.mean_batch, rates.mean_adapters, rates.step_seconds) == (3.0, 2.0, 0.01)
    assert rates.first_token_seconds == 0.5
    assert rates.inter_token_seconds == pytest.approx(0.015)


def test_where_nothing_happened_there_is_no_mean() -> None:
    rates = rates_of(BEFORE, later(uptime_seconds=11.0))
    assert (rates.tokens_per_second, rates.mean_batch, rates.first_token_seconds) == (0, None, None)


def test_a_server_that_started_again_counts_from_there() -> None:
    rates = rates_of(BEFORE, later(uptime_seconds=5.0, generated_tokens=100, requests=1))
    assert (rates.seconds, rates.tokens_per_second, rates.requests_per_second) == (5.0, 20.0, 0.2)


INFO = ServerInfo(
    "1", "tiny", "Llama", "sha256:0", "float32", "cpu", 100, 259, True, 1000, False, 64, 1 << 30
)


def test_a_look_is_readable() -> None:
    load = later(uptime_seconds=3725.0, running_requests=3)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(render(View(INFO, load, rates_of(BEFORE, load), [])))
    shown = console.export_text()
    for part in ("tiny on cpu, up 1:02:05", "running 3/64", "KV blocks 0/100", "device", "3.0 MB"):
        assert part in shown


def test_texts_of_a_server_are_no_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failure = "no [bold] weight in [/tmp/a] :warning:"
    failed = SimpleNamespace(
        reference="a:1", tier="host", is_pinned=False, expires_at=None, rank=1,
        status=AdapterStatus(False, failure, 0, 1, 2, 3, 4, None),
    )  # fmt: skip

    class Fake:
        adapters = SimpleNamespace(list=lambda tier, **_: [failed] if tier == "host" else [])

        def __init__(self, server: str) -> None:
            self.info, self.load = lambda: INFO, lambda: BEFORE

        def __enter__(self) -> "Fake":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("loramux.cli.top.Client", Fake)
    top(interval=0.1, limit=9, once=True, server="here")
    assert failure in capsys.readouterr().out
