"""`loramux top`: live load of a server."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from loramux._rates import Rates, rates_of
from loramux.cli.adapters import plain
from loramux.cli.listing import state_of, when
from loramux.cli.options import DEFAULT_SERVER, Json, Server
from loramux.cli.tables import table_console
from loramux.client import Client
from loramux.errors import UnavailableError
from loramux.types import Adapter, ServerInfo, ServerLoad, TierLoad


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """One sample of a server."""

    info: ServerInfo
    load: ServerLoad
    rates: Rates
    adapters: list[Adapter]
    """Adapters in memory, busiest first."""


def top(
    interval: Annotated[
        float, typer.Option("--interval", "-i", min=0.1, help="Refresh interval in seconds.")
    ] = 1.0,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, help="Maximum number of adapters to show.")
    ] = 20,
    once: Annotated[
        bool, typer.Option("--once", help="Print one sample, taken over one interval, and exit.")
    ] = False,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Show live load, latency, memory and adapters of a server.

    Runs until Ctrl-C.
    """
    if as_json and not once:
        raise typer.BadParameter("--json prints a single sample: add --once")
    console = table_console()
    with Client(server) as client, contextlib.suppress(KeyboardInterrupt):
        info, before = client.info(), client.load()
        if once:
            time.sleep(interval)
            view = _look(client, info, before, limit)
            if as_json:
                print(json.dumps(_plain(view)))
            else:
                console.print(render(view))
            return
        _watch(client, info, before, console, interval, limit)


def render(view: View) -> Group:
    """Return a sample as shown in a terminal."""
    load, rates = view.load, view.rates
    head = Text(f"{view.info.base_model} on {view.info.device}, ", style="bold")
    head.append(f"up {_duration(load.uptime_seconds)}")
    held = (
        f"running {load.running_requests}/{view.info.max_running_requests}",
        f"waiting {load.waiting_requests}",
        f"KV blocks {load.kv_blocks_used}/{load.kv_blocks}",
    )
    steps = (
        f"batch {_number(rates.mean_batch)}",
        f"adapters/batch {_number(rates.mean_adapters)}",
        f"step {_milliseconds(rates.step_seconds)}",
        f"steps/s {rates.steps_per_second:.1f}",
    )
    flow = (
        f"requests/s {rates.requests_per_second:.1f}",
        f"tokens/s {rates.tokens_per_second:.1f}",
        f"prompt tokens/s {rates.prompt_tokens_per_second:.1f}",
    )
    waits = (
        f"first token {_milliseconds(rates.first_token_seconds)}",
        f"between tokens {_milliseconds(rates.inter_token_seconds)}",
    )
    lines = [Text("   ".join(parts)) for parts in (held, steps, flow, waits)]
    return Group(head, *lines, "", _tiers(load), "", _adapters(view.adapters))


def _watch(
    client: Client,
    info: ServerInfo,
    before: ServerLoad,
    console: Console,
    interval: float,
    limit: int,
) -> None:
    """Show samples repeatedly; while the server is unavailable, keep waiting for it."""
    with _screen(console) as show:
        while True:
            time.sleep(interval)
            try:
                view = _look(client, info, before, limit)
            except UnavailableError as error:
                show(Text(f"the server is unavailable: {error}"))
                continue
            before = view.load
            show(render(view))


@contextlib.contextmanager
def _screen(console: Console) -> Iterator[Callable[[RenderableType], object]]:
    """Yield a function that shows a thing in place of the last; without a terminal, below it."""
    if not console.is_terminal:
        yield console.print
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        yield lambda shown: live.update(shown, refresh=True)


def _look(client: Client, info: ServerInfo, before: ServerLoad, limit: int) -> View:
    # Not those on disk only, which may be very many.
    found = client.adapters.list(tier="device", all_versions=True)
    found += client.adapters.list(tier="host", all_versions=True)
    found.sort(key=_busyness, reverse=True)
    load = client.load()
    return View(info, load, rates_of(before, load), found[:limit])


def _busyness(adapter: Adapter) -> tuple[int, float]:
    used = adapter.status.last_used_at
    return adapter.status.calls, used.timestamp() if used else 0.0


def _tiers(load: ServerLoad) -> Table:
    table = Table("tier", box=None, pad_edge=False)
    for heading in ("adapters", "memory", "of", "hits", "misses", "evictions", "reloads"):
        table.add_column(heading, justify="right")
    for name, tier in (("device", load.device), ("host", load.host)):
        table.add_row(name, *_tier(tier))
    return table


def _tier(tier: TierLoad) -> list[str]:
    memory = (tier.bytes / 1e6, tier.capacity_bytes / 1e6)
    counts = (tier.hits, tier.misses, tier.evictions, tier.reloads)
    return [str(tier.adapters), *(f"{size:.1f} MB" for size in memory), *map(str, counts)]


def _adapters(adapters: list[Adapter]) -> Table:
    table = Table("adapter", "state", box=None, pad_edge=False)
    for heading in ("rank", "memory", "in flight", "requests", "hits", "loads"):
        table.add_column(heading, justify="right")
    table.add_column("last used")
    for adapter in adapters:
        status = adapter.status
        numbers = (status.calls, status.requests, status.hits, status.loads)
        table.add_row(
            adapter.reference,
            state_of(adapter),
            str(adapter.rank),
            f"{status.memory_bytes / 1e6:.1f} MB",
            *map(str, numbers),
            when(status.last_used_at)[-8:],  # only the time
        )
    return table


def _plain(view: View) -> dict[str, object]:
    return {
        "info": dataclasses.asdict(view.info),
        "load": dataclasses.asdict(view.load),
        "rates": dataclasses.asdict(view.rates),
        "adapters": [plain(adapter) for adapter in view.adapters],
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
