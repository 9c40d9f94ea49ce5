"""Helpers for asyncio tasks."""

import asyncio


async def ended(task: asyncio.Task[None]) -> None:
    """Cancel `task` and wait until it has ended."""
    task.cancel()
    await asyncio.wait([task])
