"""ClassificationService: texts -> what the head of an adapter makes of them."""

import asyncio
import secrets
from contextlib import AbstractContextManager
from dataclasses import dataclass

from loramux.errors import DataLossError
from loramux.v1 import classification_pb2
from loramux_server.access.caller import caller
from loramux_server.access.quotas import Quotas, Reserved
from loramux_server.engine.messages import AdapterSource, ModelInfo, Sampling, Scores
from loramux_server.engine_client import EngineClient
from loramux_server.observe.call_record import note
from loramux_server.place import Place
from loramux_server.rpc import Context
from loramux_server.services.calls import Calls
from loramux_server.services.classification_limits import check_request, check_sizes
from loramux_server.services.deadline import Deadline
from loramux_server.services.descriptions import identity_of
from loramux_server.services.gen_ai import CLASSIFY, asked_to_classify
from loramux_server.services.limits import check_tokens, invalid
from loramux_server.services.observer import Observer
from loramux_server.services.prompts import Prompts
from loramux_server.services.request_spans import RequestSpans
from loramux_server.services.scoring import PROBLEMS, Scoring, Text
from loramux_server.services.submission import Asked, Submission
from loramux_server.services.tasks import check_classifies
from loramux_server.statuses import Statuses
from loramux_server.store.instructions import Instruction, Instructions
from loramux_server.store.registry import Registry
from loramux_server.waiting_room import WaitingRoom

_SAMPLING = Sampling(max_tokens=1, seed=0)
"""Of a request that ends before a token is chosen."""
OFF_LOOP = 4096
"""Numbers from which results are told in a thread."""


@dataclass(frozen=True, slots=True)
class _Call:
    """Checked texts, on their way."""

    request_id: str
    texts: list[Text]
    adapter: str
    """Its full name."""
    source: AdapterSource
    scoring: Scoring
    observer: Observer
    reserved: Reserved
    """Tokens of its tenant's quota."""
    place: Place
    """What it takes of the waiting room."""

    def started(self, queue_seconds: float) -> None:
        """Note that a text left the engine's queue."""
        self.place.started()
        self.observer.started(queue_seconds)

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(len(text.tokens) for text in self.texts)


class ClassificationService:
    """Implements `loramux.v1.ClassificationService`."""

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
        self._engine = engine
        self._registry = registry
        self._model = model
        self._calls = calls
        self._statuses = statuses
        self._prompts = prompts
        self._quotas = quotas
        self._room = room
        self._instructions = instructions
        self._spans = spans
        self._default_timeout = default_timeout

    async def Classify(
        self, request: classification_pb2.ClassifyRequest, context: Context
    ) -> classification_pb2.ClassifyResponse:
        """Answer when every text is classified."""
        deadline = Deadline.of(context, self._default_timeout)
        with (
            self._calls.observed() as observer,
            self._calls.placed(request, _SAMPLING.max_tokens, deadline) as place,
        ):
            check_request(request, self._model)
            key = request.routing_key or secrets.token_hex(8)
            with (
                self._calls.live(request.request_id) as request_id,
                self._registry.lease(request.adapter, key=key) as (record, source),
                self._statuses.used(record.digest, record.tenant),
            ):
                note(digest=record.digest)
                check_classifies(record, "adapter")
                told = await self._instructions.of(source)
                scoring = _scoring(request, source, told)
                texts = await self._texts(request, told, record.vocab_size)
                check_sizes([len(text.tokens) for text in texts], scoring, self._model)
                with self._quotas.tokens(
                    caller().tenant, sum(len(text.tokens) for text in texts)
                ) as reserved:
                    call = _Call(
                        request_id,
                        texts,
                        record.full_name,
                        source,
                        scoring,
                        observer,
                        reserved,
                        place,
                    )
                    observer.resolved(call.adapter, call.num_tokens)
                    results = await self._run(call, deadline)
                response = classification_pb2.ClassifyResponse(
                    request_id=request_id,
                    adapter=identity_of(record),
                    problem_type=PROBLEMS[scoring.labels.problem],
                    labels=scoring.labels.names,
                    results=results,
                    timing=observer.timing(),
                )
                response.usage.prompt_tokens = call.num_tokens
                return response

    async def _texts(
        self, request: classification_pb2.ClassifyRequest, told: Instruction, own_vocab_size: int
    ) -> list[Text]:
        """Return the inputs of `request` as tokens."""
        adds = request.add_special_tokens if request.HasField("add_special_tokens") else True
        texts = []
        for index, each in enumerate(request.inputs):
            if each.token_ids:
                text = Text(list(each.token_ids), [None] * len(each.token_ids))
                field = f"inputs[{index}].token_ids"
                check_tokens(field, text.tokens, own_vocab_size or self._model.vocab_size)
            else:
                tokens, places = await self._prompts.placed(
                    each.text, f"inputs[{index}].text", told,
                    parse_special=request.parse_special_tokens, add_special=adds,
                )  # fmt: skip
                text = Text(tokens, places)
            texts.append(text)
        return texts

    async def _run(
        self, call: _Call, deadline: Deadline
    ) -> list[classification_pb2.Classification]:
        """Return what is told of each text of `call`."""
        submission = Submission[Scores](self._engine, call.started)
        self._room.enter(
            call.place,
            num_completions=len(call.texts),
            num_prompt=-(-call.num_tokens // len(call.texts)),
            seconds_left=deadline.remaining,
            on_lost=submission.give_way,
        )
        found: dict[int, bytes] = {}
        running = submission.running(
            [Asked(text.tokens, call.source, _SAMPLING) for text in call.texts],
            tenant=caller().tenant,
            seconds_left=deadline.remaining,
            weight=call.place.weight,
        )
        followed = self._followed(call, submission.ids)
        with running, followed, deadline.over(submission.mailbox):
            while len(found) < len(call.texts):
                for index, (scores,) in (await submission.mailbox.take()).items():
                    found[index] = scores.logits
                    call.reserved.num_used += len(call.texts[index].tokens)
                    call.place.finished(0)

        def results() -> list[classification_pb2.Classification]:
            return [call.scoring.result(text, found[i]) for i, text in enumerate(call.texts)]

        if sum(map(len, found.values())) < 4 * OFF_LOOP:
            return results()
        return await asyncio.to_thread(results)

    def _followed(self, call: _Call, ids: list[int]) -> AbstractContextManager[None]:
        """Let a trace that there may be of `call` tell what becomes of its texts."""
        return self._spans.following(
            f"{CLASSIFY} {self._model.name}",
            lambda: asked_to_classify(
                model=self._model.name,
                request_id=call.request_id,
                num_texts=len(call.texts),
                num_tokens=call.num_tokens,
                adapter=call.adapter,
                digest=call.source.digest,
            ),
            dict,
            ids=ids,
            digest=call.source.digest,
        )


def _scoring(
    request: classification_pb2.ClassifyRequest, source: AdapterSource, told: Instruction
) -> Scoring:
    """Return how results are told.

    Raises:
        InvalidArgumentError: There are not so many labels as are asked for.
        DataLossError: The package cannot be read.
    """
    if told.labels is None or source.task is None:
        raise DataLossError(
            "the stored adapter cannot be read: what its labels are is not known",
            reason="ADAPTER_DAMAGED",
            field="adapter",
        )
    most = len(told.labels.names)
    top_k = request.top_k if request.HasField("top_k") else None
    if top_k is not None and not 1 <= top_k <= most:
        raise invalid("top_k", top_k, f"1 to {most}, as many labels as the adapter has")
    return Scoring(source.task, told.labels, top_k, request.return_logits)
