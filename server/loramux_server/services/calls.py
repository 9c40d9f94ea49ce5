"""What all requests to the engine have in common: metrics, waiting room, quotas and ids."""

import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from google.protobuf.message import Message

from loramux.errors import AlreadyExistsError
from loramux_server.access.caller import caller
from loramux_server.access.num_calls import num_calls
from loramux_server.access.quotas import Quotas
from loramux_server.metrics.series import Metrics
from loramux_server.observe.call_record import note
from loramux_server.services.deadline import Deadline
from loramux_server.services.observer import Observer
from loramux_server.waiting_room.place import Place
from loramux_server.waiting_room.room import WaitingRoom


class Calls:
    """Measures requests, admits them, and tracks the ids of those in flight."""

    def __init__(self, metrics: Metrics, quotas: Quotas, room: WaitingRoom) -> None:
        self._metrics = metrics
        self._quotas = quotas
        self._room = room
        self._live: set[tuple[str, str]] = set()
        """(tenant, request id) of each request in flight."""

    @contextmanager
    def observed(self) -> Iterator[Observer]:
        """Measure a request for the duration of the block."""
        observer = Observer(self._metrics, caller().tenant)
        try:
            yield observer
        except BaseException as error:
            observer.ended(error)
            raise
        observer.ended()

    def placed(
        self, request: Message, max_tokens: int, deadline: Deadline, priority: int = 0
    ) -> AbstractContextManager[Place]:
        """Admit `request` to the waiting room; see `WaitingRoom.place`."""
        tenant = caller().tenant
        return self._room.place(
            tenant,
            self._quotas.policy(tenant).weight,
            request.ByteSize(),
            max_tokens=max_tokens,
            seconds_left=deadline.remaining,
            priority=priority,
        )

    @contextmanager
    def live(self, requested_id: str) -> Iterator[str]:
        """Register a request id during the block; if `requested_id` is empty, generate one.

        Raises:
            AlreadyExistsError: The tenant has a request with that id in flight.
            FailedPreconditionError: The call makes more requests at once than the tenant may ever
                have.
            ResourceExhaustedError: The tenant has too many requests.
        """
        request_id = requested_id or secrets.token_hex(8)
        tenant = caller().tenant
        key = (tenant, request_id)
        if key in self._live:
            raise AlreadyExistsError(
                f"request_id {request_id!r} is in use by a request that is still running",
                reason="REQUEST_EXISTS",
                field="request_id",
            )
        self._live.add(key)
        note(generation_id=request_id)
        try:
            with self._quotas.request(tenant, num_calls()):
                yield request_id
        finally:
            self._live.discard(key)
