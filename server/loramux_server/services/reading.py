"""Texts that an adapter or the base reads to their end and does not continue.

What they are read for is the matter of the services: to label them, to find answers in them.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from loramux.v1 import classification_pb2, question_answering_pb2
from loramux_server.access.caller import caller
from loramux_server.access.quotas import Quotas
from loramux_server.engine.messages import AdapterSource, ModelInfo, Sampling, Scores
from loramux_server.engine_client import EngineClient
from loramux_server.observe.call_record import note
from loramux_server.place import Place
from loramux_server.rpc import Context
from loramux_server.services.calls import Calls
from loramux_server.services.deadline import Deadline
from loramux_server.services.gen_ai import asked_to_read
from loramux_server.services.observer import Observer
from loramux_server.services.prompts import Prompts
from loramux_server.services.request_spans import RequestSpans
from loramux_server.services.submission import Asked, Submission
from loramux_server.statuses import Statuses
from loramux_server.store.instructions import Instruction, Instructions
from loramux_server.store.record import AdapterRecord
from loramux_server.store.registry import Registry
from loramux_server.waiting_room import WaitingRoom

_SAMPLING = Sampling(max_tokens=1, seed=0)
"""Of a request that ends before a token is chosen."""
OFF_LOOP = 16 << 10
"""Bytes of what came of the texts from which on results are told in a thread."""
T = TypeVar("T")
R = TypeVar("R", classification_pb2.ClassifyRequest, question_answering_pb2.AnswerRequest)


@dataclass(frozen=True, slots=True)
class Reading:
    """One such request, whose adapter is resolved and kept."""

    request_id: str
    record: AdapterRecord
    source: AdapterSource
    told: Instruction
    """What the adapter's package says."""
    observer: Observer
    place: Place
    """What it takes of the waiting room."""
    deadline: Deadline

    def started(self, queue_seconds: float) -> None:
        """Note that a text left the engine's queue."""
        self.place.started()
        self.observer.started(queue_seconds)


class Readings:
    """Takes requests to read texts from their arrival to what the engine makes of the texts."""

    def __init__(
        self,
        *,
        engine: EngineClient,
        registry: Registry,
        model: ModelInfo,
        calls: Calls,
        statuses: Statuses,
        prompts: Prompts,
        quotas: Quotas,
        room: WaitingRoom,
        instructions: Instructions,
        spans: RequestSpans,
        default_timeout: float,
    ) -> None:
        self.model = model
        self.prompts = prompts
        self._engine = engine
        self._registry = registry
        self._calls = calls
        self._statuses = statuses
        self._quotas = quotas
        self._room = room
        self._instructions = instructions
        self._spans = spans
        self._default_timeout = default_timeout

    @asynccontextmanager
    async def opened(
        self,
        request: R,
        context: Context,
        check_request: Callable[[R, ModelInfo], None],
        check_adapter: Callable[[AdapterRecord, str], None],
    ) -> AsyncIterator[Reading]:
        """Take in `request`, and keep what it holds for as long as the block runs.

        Args:
            request: What came.
            context: Of its call.
            check_request: Demands that its fields are within limits that no adapter changes.
            check_adapter: Demands that an adapter, named by a request field, is made for it.

        Raises:
            LoramuxError: It is refused.
        """
        deadline = Deadline.of(context, self._default_timeout)
        with (
            self._calls.observed() as observer,
            self._calls.placed(request, _SAMPLING.max_tokens, deadline) as place,
        ):
            check_request(request, self.model)
            key = request.routing_key or secrets.token_hex(8)
            with (
                self._calls.live(request.request_id) as request_id,
                self._registry.lease(request.adapter, key=key) as (record, source),
                self._statuses.used(record.digest, record.tenant),
            ):
                note(digest=record.digest)
                check_adapter(record, "adapter")
                told = await self._instructions.of(source)
                yield Reading(request_id, record, source, told, observer, place, deadline)

    async def run(
        self, reading: Reading, operation: str, texts: Sequence[list[int]]
    ) -> list[bytes]:
        """Return what the engine makes of each of `texts`, which are tokens.

        Args:
            reading: The request that they are of.
            operation: What a trace calls it.
            texts: Each fits the context.

        Raises:
            LoramuxError: It makes nothing of one of them, or not in time.
        """
        tenant, num_tokens = caller().tenant, sum(map(len, texts))
        with self._quotas.tokens(tenant, num_tokens) as reserved:
            reading.observer.resolved(reading.record.full_name, num_tokens)
            submission = Submission[Scores](self._engine, reading.started)
            self._room.enter(
                reading.place,
                num_completions=len(texts),
                num_prompt=-(-num_tokens // len(texts)),
                seconds_left=reading.deadline.remaining,
                on_lost=submission.give_way,
            )
            found: dict[int, bytes] = {}
            running = submission.running(
                [Asked(text, reading.source, _SAMPLING) for text in texts],
                tenant=tenant,
                seconds_left=reading.deadline.remaining,
                weight=reading.place.weight,
            )
            followed = self._followed(reading, operation, len(texts), num_tokens, submission.ids)
            with running, followed, reading.deadline.over(submission.mailbox):
                while len(found) < len(texts):
                    for index, (scores,) in (await submission.mailbox.take()).items():
                        found[index] = scores.logits
                        reserved.num_used += len(texts[index])
                        reading.place.finished(0)
        return [found[index] for index in range(len(texts))]

    def _followed(
        self, reading: Reading, operation: str, num_texts: int, num_tokens: int, ids: list[int]
    ) -> AbstractContextManager[None]:
        """Let a trace that there may be of `reading` tell what becomes of its texts."""
        return self._spans.following(
            f"{operation} {self.model.name}",
            lambda: asked_to_read(
                operation=operation,
                model=self.model.name,
                request_id=reading.request_id,
                num_texts=num_texts,
                num_tokens=num_tokens,
                adapter=reading.record.full_name,
                digest=reading.source.digest,
            ),
            dict,
            ids=ids,
            digest=reading.source.digest,
        )


async def told_of(found: Sequence[bytes], tell: Callable[[], T]) -> T:
    """Return what `tell` makes of `found`, in a thread where that is much."""
    return tell() if sum(map(len, found)) < OFF_LOOP else await asyncio.to_thread(tell)
