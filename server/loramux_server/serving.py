"""The server process, from its start to a signal."""

import asyncio
import contextlib
import os
import signal

from loramux_server.config import ServerConfig
from loramux_server.memory_tuning import freeze_gc, pin_mmap_threshold
from loramux_server.server import Server

_SAME_SECONDS = 0.2
"""Signals within this many seconds count as one: wrappers such as `timeout` forward a signal that
the whole process group gets anyway."""


async def serve_until_signal(config: ServerConfig) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP, or until the engine cannot be kept alive.

    A second signal ends the process at once, unless it comes together with the first. SIGHUP
    stays ignored if it was, as under nohup.

    Returns:
        The exit code: 0, or 1 if the engine could not be kept alive.
    """
    pin_mmap_threshold()
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    begin = 0.0

    def on_signal() -> None:
        nonlocal begin
        if not stop.is_set():
            begin = loop.time()
            stop.set()
        elif loop.time() - begin > _SAME_SECONDS:
            os._exit(1)

    ends = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ends.append(signal.SIGHUP)
    for number in ends:
        loop.add_signal_handler(number, on_signal)
    stopping = asyncio.create_task(stop.wait())
    running = asyncio.create_task(_run(config))
    await asyncio.wait((stopping, running), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    return 0 if stop.is_set() else 1


async def _run(config: ServerConfig) -> None:
    """Start, announce it, and serve until the engine fails for good or the task is cancelled."""
    async with Server(config) as server:
        freeze_gc()
        print(f"loramux serves on {server.grpc_address}, metrics on {server.metrics_address}")
        await server.wait_failed()
