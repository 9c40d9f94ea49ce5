"""Running requests that read texts without generating.

The services decide what for: classification, question answering, embeddings.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Protocol, TypeVar, cast

from loramux.errors import DataLossError
from loramux.v1 import classification_pb2, embedding_pb2, question_answering_pb2
from loramux_adapters.embedding import Pooling
from loramux_server.access.caller import caller
from loramux_server.access.quotas import Quotas
from loramux_server.engine_link.client import EngineClient
from loramux_server.observe.call_record import note
from loramux_server.services.calls import Calls
from loramux_server.services.deadline import Deadline
from loramux_server.services.gen_ai import asked_to_read
from loramux_server.services.limits import check_tokens
from loramux_server.services.pooling.call import PoolingCall
from loramux_server.services.pooling.input_limits import Input, is_pair
from loramux_server.services.request_spans import RequestSpans
from loramux_server.services.submission import Submission
from loramux_server.services.tasks import check_reads
from loramux_server.services.texts import Text, Texts, no_tokens
from loramux_server.statuses import Statuses
from loramux_server.store.package_settings import NONE, PackageSettingsCache
from loramux_server.store.record import AdapterRecord
from loramux_server.store.registry import Registry
from loramux_server.transport.rpc import Context
from loramux_server.waiting_room.room import WaitingRoom
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Scores
from loramux_server.wire.model_info import ModelInfo
from loramux_server.wire.sampling import Sampling

_SAMPLING = Sampling(max_tokens=1, seed=0)
"""For a request that ends before a token is sampled."""
OFF_LOOP = 16 << 10
"""Bytes of results from which they are processed in a thread."""
T = TypeVar("T")
Inputs = classification_pb2.ClassifyRequest | embedding_pb2.EmbedRequest
R = TypeVar(
    "R",
    classification_pb2.ClassifyRequest,
    question_answering_pb2.AnswerRequest,
    embedding_pb2.EmbedRequest,
)


class TokenizedInput(Protocol):
    """Tokens of one text, or of a pair."""

    @property
    def tokens(self) -> list[int]:
        """The tokens."""

    @property
    def second_from(self) -> int:
        """Index of the second text, if it differs in token type; else 0."""


class PoolingRunner:
    """Admits and runs requests that read texts."""

    def __init__(
        self,
        *,
        engine: EngineClient,
        registry: Registry,
        model: ModelInfo,
        calls: Calls,
        statuses: Statuses,
        texts: Texts,
        quotas: Quotas,
        room: WaitingRoom,
        package_settings: PackageSettingsCache,
        spans: RequestSpans,
        default_timeout: float,
    ) -> None:
        self.model = model
        self.texts = texts
        self._engine = engine
        self._registry = registry
        self._calls = calls
        self._statuses = statuses
        self._quotas = quotas
        self._room = room
        self._package_settings = package_settings
        self._spans = spans
        self._default_timeout = default_timeout

    @asynccontextmanager
    async def opened(
        self,
        request: R,
        context: Context,
        check_request: Callable[[R, ModelInfo], None],
        check_adapter: Callable[[AdapterRecord, ModelInfo, str], None],
    ) -> AsyncIterator[PoolingCall]:
        """Check and admit `request`, and hold its resources during the block.

        Args:
            request: The request.
            context: That of its call.
            check_request: Checks its fields against limits that do not depend on the adapter.
            check_adapter: Checks that an adapter, named by a request field, does on the base what
                is asked for.

        Raises:
            LoramuxError: It is refused.
        """
        deadline = Deadline.of(context, self._default_timeout)
        with (
            self._calls.observed() as observer,
            self._calls.placed(request, _SAMPLING.max_tokens, deadline, request.priority) as place,
        ):
            check_reads(self.model)
            check_request(request, self.model)
            key = request.routing_key or secrets.token_hex(8)
            with self._calls.live(request.request_id) as request_id:
                if not request.adapter:
                    yield PoolingCall(request_id, None, None, NONE, observer, place, deadline)
                    return
                with (
                    self._registry.lease(request.adapter, key=key) as (record, source),
                    self._statuses.used(record.digest, record.tenant),
                ):
                    note(digest=record.digest)
                    check_adapter(record, self.model, "adapter")
                    settings = await self._package_settings.of(source)
                    if not settings.is_known:
                        raise DataLossError(
                            "the stored adapter cannot be read, so its settings for texts and "
                            "results are not known",
                            reason="ADAPTER_DAMAGED",
                            field="adapter",
                        )
                    yield PoolingCall(
                        request_id, record, source, settings, observer, place, deadline
                    )

    async def inputs(self, request: Inputs, call: PoolingCall) -> list[Text]:
        """Return the tokenized inputs of `request`.

        Raises:
            InvalidArgumentError: One has no tokens, or invalid ones.
        """
        adds = request.add_special_tokens if request.HasField("add_special_tokens") else True
        own_size = call.record.vocab_size if call.record else 0
        texts = []
        for index, each in enumerate(cast(Sequence[Input], request.inputs)):
            if each.token_ids:
                text = Text(list(each.token_ids), [None] * len(each.token_ids))
                field = f"inputs[{index}].token_ids"
                check_tokens(field, text.tokens, own_size or self.model.vocab_size)
            elif is_pair(each):
                fields = (f"inputs[{index}].text", f"inputs[{index}].text_pair")
                pair = await self.texts.pair(
                    (each.text, each.text_pair), fields, call.settings,
                    parse_special=request.parse_special_tokens, add_special=adds,
                )  # fmt: skip
                if not pair.tokens:
                    raise no_tokens(fields[0])
                text = Text.of_pair(pair)
            else:
                text = await self.texts.placed(
                    each.text, f"inputs[{index}].text", call.settings,
                    parse_special=request.parse_special_tokens, add_special=adds,
                )  # fmt: skip
            texts.append(text)
        return texts

    async def run(
        self,
        call: PoolingCall,
        operation: str,
        texts: Sequence[TokenizedInput],
        pooling: Pooling | None = None,
    ) -> list[bytes]:
        """Return the engine's result for each of `texts`, as bytes of float32.

        Args:
            call: Their request.
            operation: Its operation name in traces.
            texts: Each fits the context.
            pooling: How they are embedded; None if a head reads them.

        Raises:
            LoramuxError: The engine fails on one of them, or the deadline passes.
        """
        tenant, num_tokens = caller().tenant, sum(len(text.tokens) for text in texts)
        has_token_types = self.model.takes_token_types
        with self._quotas.tokens(tenant, num_tokens) as reserved:
            call.observer.resolved(call.adapter, num_tokens)
            submission = Submission[Scores](self._engine, call.started)
            self._room.enter(
                call.place,
                num_completions=len(texts),
                num_prompt=-(-num_tokens // len(texts)),
                seconds_left=call.deadline.remaining,
                on_evicted=submission.evict,
            )
            found: dict[int, bytes] = {}
            running = submission.running(
                [
                    Ask(
                        text.tokens,
                        call.source,
                        _SAMPLING,
                        tenant,
                        pooling,
                        second_from=text.second_from if has_token_types else 0,
                    )
                    for text in texts
                ],
                seconds_left=call.deadline.remaining,
                place=call.place,
            )
            followed = self._followed(call, operation, len(texts), num_tokens, submission.ids)
            with running, followed, call.deadline.over(submission.mailbox):
                while len(found) < len(texts):
                    for index, (scores,) in (await submission.mailbox.take()).items():
                        found[index] = scores.numbers
                        reserved.num_used += len(texts[index].tokens)
                        call.place.finished(0)
        return [found[index] for index in range(len(texts))]

    def _followed(
        self, call: PoolingCall, operation: str, num_texts: int, num_tokens: int, ids: list[int]
    ) -> AbstractContextManager[None]:
        """Trace the request, if its trace is recorded."""
        return self._spans.following(
            f"{operation} {self.model.name}",
            lambda: asked_to_read(
                operation=operation,
                model=self.model.name,
                request_id=call.request_id,
                num_texts=num_texts,
                num_tokens=num_tokens,
                adapter=call.adapter,
                digest=call.digest,
            ),
            dict,
            ids=ids,
            digest=call.digest,
        )


async def postprocess(found: Sequence[bytes], compute: Callable[[], T], *, times: int = 1) -> T:
    """Return what `compute`, which goes over `found` so many `times`, makes of it.

    Runs in a thread if that is much work.
    """
    work = times * sum(map(len, found))
    return compute() if work < OFF_LOOP else await asyncio.to_thread(compute)
