"""Which calls are evicted when another one finds the waiting room full."""

from loramux_server.waiting_room.limits import RoomLimits, RoomUsage
from loramux_server.waiting_room.place import Place
from loramux_server.waiting_room.places import Places


def calls_to_evict(
    places: Places, limits: RoomLimits, taken: RoomUsage, place: Place, more: RoomUsage
) -> list[Place] | None:
    """Return the calls to evict so that `place` may take `more`; None if that is not enough.

    Calls that have not started are evicted for a tenant with a smaller share of the room, by
    weight, and for a better priority of their own tenant. The last in turn is evicted first.
    """
    evicted: list[Place] = []
    shares = places.shares()
    mine = shares.get(place.tenant, 0.0) + more.completions / place.weight
    for other in places.last_first():
        if other.has_started or other.on_evicted is None:
            continue
        if shares[other.tenant] <= mine and not has_better_priority(place, other):
            continue
        shares[other.tenant] -= other.num_unstarted / other.weight
        evicted.append(other)
        more = more.less(RoomUsage(other.num_open, other.num_tokens, other.num_bytes))
        if not limits.over(taken, more):
            return evicted
    return None


def has_better_priority(place: Place, other: Place) -> bool:
    """Return whether `place` has a better priority than `other`, which is of the same tenant."""
    return place.tenant == other.tenant and place.priority < other.priority


def reason(place: Place, other: Place) -> tuple[str, str]:
    """Return why `other` is evicted for `place`: a cause for metrics, and a message."""
    if has_better_priority(place, other):
        return "priority", f"the queue is full, and a request of priority {place.priority} arrived"
    return "share", f"tenant {other.tenant!r} has more than its share of waiting requests"
