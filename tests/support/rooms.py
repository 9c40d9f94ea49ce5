"""Waiting rooms of tests."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry

from loramux_server.metrics.series import AdmissionMetrics
from loramux_server.waiting_room.limits import RoomLimits
from loramux_server.waiting_room.room import WaitingRoom
from tests.support.fake import ManualClock


def open_room(
    *, registry: CollectorRegistry | None = None, clock: Callable[[], float] | None = None,
    lag: Callable[[], float] = lambda: 0.0, **limits: float,
) -> WaitingRoom:  # fmt: skip
    """Return an empty room with `limits`; those that are not given do not matter."""
    ample: dict[str, float] = dict.fromkeys(RoomLimits.__slots__, 1 << 30)
    return WaitingRoom(
        RoomLimits(**{**ample, "block_size": 4, "max_lag": 1.0, **limits}),  # type: ignore[arg-type]
        metrics=AdmissionMetrics(registry or CollectorRegistry()),
        clock=clock or ManualClock(),
        lag=lag,
    )
