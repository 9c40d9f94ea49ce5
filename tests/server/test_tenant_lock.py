"""Tenants that want the process that prepares images."""

import asyncio

import pytest

from loramux_server.images.tenant_lock import TenantLock


async def test_a_tenant_with_many_images_does_not_keep_others_waiting() -> None:
    lock, done = TenantLock(), []

    async def work(tenant: str, number: int) -> None:
        await lock.acquire(tenant)
        done.append((tenant, number))
        await asyncio.sleep(0)
        lock.release()

    asked = [("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 0), ("b", 1), ("c", 0)]
    await asyncio.gather(*(work(*each) for each in asked))
    assert done == [
        ("a", 0), ("a", 1), ("b", 0), ("c", 0), ("a", 2), ("b", 1), ("a", 3),
    ]  # fmt: skip


async def test_who_goes_away_keeps_no_turn() -> None:
    lock = TenantLock()
    await lock.acquire("a")
    waiting = [asyncio.ensure_future(lock.acquire(tenant)) for tenant in "abc"]
    await asyncio.sleep(0)
    waiting[0].cancel()  # before its turn
    lock.release()
    waiting[1].cancel()  # when it has just come
    for gone in waiting[:2]:
        with pytest.raises(asyncio.CancelledError):
            await gone
    await waiting[2]
    lock.release()
    await lock.acquire("a")
