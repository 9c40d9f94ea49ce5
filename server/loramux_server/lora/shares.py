"""Fair eviction between tenants, so that none fills a tier with its own adapters."""

from collections import Counter
from collections.abc import Mapping


def protected_adapters(
    allocations: Mapping[str, tuple[str, int]], tenant: str, size: int, limit: float
) -> set[str]:
    """Return the adapters to keep, if possible, when `tenant` needs room.

    A tenant above its share evicts its own adapters, and is evicted first by others.

    Args:
        allocations: Digest -> (tenant, size) of all adapters in the tier.
        tenant: Owner of the adapter to be loaded.
        size: Its size.
        limit: The share of a tenant.
    """
    taken: Counter[str] = Counter()
    for owner, taken_size in allocations.values():
        taken[owner] += taken_size
    if taken[tenant] + size > limit:
        return {digest for digest, (owner, _) in allocations.items() if owner != tenant}
    return {digest for digest, (owner, _) in allocations.items() if taken[owner] <= limit}
