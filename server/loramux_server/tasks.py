"""Tasks of the event loop."""

import asyncio


async def ended(task: asyncio.Task[None]) -> None:
    """End `task`, and return when it has ended."""
    task.cancel()
    await asyncio.wait([task])
