"""What every request for the engine passes, whatever it wants of it."""

import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from google.protobuf.message import Message

from loramux.errors import AlreadyExistsError
from loramux_server.access.caller import caller
from loramux_server.access.quotas import Quotas
from loramux_server.access.together import together
from loramux_server.metrics.series import Metrics
from loramux_server.observe.call_record import note
from loramux_server.services.deadline import Deadline
from loramux_server.services.observer import Observer
from loramux_server.waiting_room.place import Place
from loramux_server.waiting_room.room import WaitingRoom


class Calls:
    """Measures and counts requests, and knows the ids of those under way."""

    def __init__(self, metrics: Metrics, quotas: Quotas, room: WaitingRoom) -> None:
        self._metrics = metrics
        self._quotas = quotas
        self._room = room
        self._live: set[tuple[str, str]] = set()
        """Tenant and id of each request under way."""

    @contextmanager
    def observed(self) -> Iterator[Observer]:
        """Measure a request that lasts as long as the block."""
        observer = Observer(self._metrics, caller().tenant)
        try:
            yield observer
        except BaseException as error:
            observer.ended(error)
            raise
        observer.ended()

    def placed(
        self, request: Message, max_tokens: int, deadline: Deadline
    ) -> AbstractContextManager[Place]:
        """Take `request` into the waiting room; see `WaitingRoom.place`."""
        tenant = caller().tenant
        return self._room.place(
            tenant,
            self._quotas.policy(tenant).weight,
            request.ByteSize(),
            max_tokens=max_tokens,
            seconds_left=deadline.remaining,
        )

    @contextmanager
    def live(self, asked: str) -> Iterator[str]:
        """Keep the id of a request, one of ours if `asked` is empty, for as long as the block runs.

        Raises:
            AlreadyExistsError: The tenant has a request of that id.
            FailedPreconditionError: It may never have as many as are made together.
            ResourceExhaustedError: It has too many requests.
        """
        request_id = asked or secrets.token_hex(8)
        tenant = caller().tenant
        key = (tenant, request_id)
        if key in self._live:
            raise AlreadyExistsError(
                f"request_id {request_id!r} is that of a request still running",
                reason="REQUEST_EXISTS",
                field="request_id",
            )
        self._live.add(key)
        note(generation_id=request_id)
        try:
            with self._quotas.request(tenant, together()):
                yield request_id
        finally:
            self._live.discard(key)
