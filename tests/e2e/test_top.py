"""`loramux top` on a real server."""

import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any

from loramux import AsyncClient
from tests.support.server import RunningServer


def command(server: RunningServer, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "loramux.cli", "top", *arguments, "--server", server.target]


def test_one_look_has_what_went_on_meanwhile(tiny_server: RunningServer) -> None:
    is_over = threading.Event()

    def work() -> None:
        with tiny_server.client() as client:
            while not is_over.is_set():
                client.generate("hello", adapter="small", max_tokens=8, ignore_eos=True)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        done = subprocess.run(
            command(tiny_server, "--once", "--json", "--interval", "2"),
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
    finally:
        is_over.set()
        worker.join()
    view: dict[str, Any] = json.loads(done.stdout)
    rates = view["rates"]
    assert rates["seconds"] >= 2
    assert rates["requests_per_second"] > 0
    assert rates["tokens_per_second"] > rates["requests_per_second"]
    assert 0 < rates["mean_adapters"] <= rates["mean_batch"]
    assert min(rates[f"{name}_seconds"] for name in ("first_token", "inter_token", "step")) > 0
    assert view["load"]["device"]["adapters"] >= 1
    assert view["load"]["device"]["bytes"] <= view["load"]["device"]["capacity_bytes"]
    (small,) = [adapter for adapter in view["adapters"] if adapter["name"] == "small"]
    assert small["tier"] == "device"
    assert view["load"]["generated_tokens"] > 0


def test_looks_follow_each_other_until_it_is_interrupted(tiny_server: RunningServer) -> None:
    with tiny_server.client() as client:
        client.adapters.prefetch("wide")
    heads = shown = 0
    with subprocess.Popen(
        command(tiny_server, "--interval", "0.1"), stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            heads += ", up 0:" in line
            shown += line.startswith("wide:1")
            if heads == 3:
                break
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode == 0
    assert shown >= 2


async def test_the_asynchronous_client_has_the_same(tiny_server: RunningServer) -> None:
    with tiny_server.client() as client:
        before = client.load()
    async with AsyncClient(tiny_server.target) as aio:
        after = await aio.load()
    assert after.uptime_seconds > before.uptime_seconds > 0
    assert after.kv_blocks == before.kv_blocks > 0
