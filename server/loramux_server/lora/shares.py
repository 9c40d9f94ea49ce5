"""Which adapters a load passes over first, so that no tenant fills a tier with its own."""

from collections import Counter
from collections.abc import Mapping


def spared(
    holders: Mapping[str, tuple[str, int]], tenant: str, size: int, limit: float
) -> set[str]:
    """Return the adapters that are to stay, if there is another way, when `tenant` needs room.

    Who has more than its share pays with its own, and gives way to others.

    Args:
        holders: Digest -> (tenant, room) of all that have room in the tier.
        tenant: Whose adapter is to come.
        size: The room that it takes.
        limit: The room that is a tenant's share.
    """
    taken: Counter[str] = Counter()
    for owner, room in holders.values():
        taken[owner] += room
    if taken[tenant] + size > limit:
        return {digest for digest, (owner, _) in holders.items() if owner != tenant}
    return {digest for digest, (owner, _) in holders.items() if taken[owner] <= limit}
