"""Requests to servers whose base reads whole texts, in this process: messages and HTTP bodies."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from types import SimpleNamespace
from typing import Any, cast

from google.protobuf.message import DecodeError, Message
from hypothesis import strategies as st

from loramux import _server_wire
from loramux.errors import FailedPreconditionError, LoramuxError
from loramux.gateway.backend import Backend
from loramux.gateway.in_process import InProcessGateway
from loramux.v1 import classification_pb2, embedding_pb2, generation_pb2, question_answering_pb2
from loramux_adapters.labels import Labels, ProblemType
from loramux_server.access.caller import LOCAL_ADMIN, acting
from loramux_server.config import ServerConfig
from loramux_server.services.server import ServerService
from loramux_server.store.package_settings import PackageSettings
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Submit
from loramux_server.wire.model_kind import ModelKind
from tests.fuzz.inputs import ODD_TEXT, mangled, requests
from tests.fuzz.target import FindingError, Target
from tests.server.test_decoder_prompts import SEQ2SEQ
from tests.server.test_streaming import Served
from tests.support.encoder_tokenizers import wordpiece
from tests.support.reads import Reads, encoder_info

CONTEXT: Any = SimpleNamespace(time_remaining=lambda: None)
MAX_TURNS = 10_000
"""Of the event loop, after which a request has come somewhere."""
LENGTH = 48
"""Tokens of the longest text."""
WORDS = st.sampled_from([*ODD_TEXT, "Ann left", "the city", "in May. " * 30, "[SEP]", "\ud800"])
SENT = WORDS.filter(lambda text: text != "\ud800")
"""Those that a message can have."""
TOKENS = st.lists(st.sampled_from([0, 2, 5, 60, -1, 1 << 40]) | st.integers(0, 60), max_size=40)
TEXTS: dict[str, type[Message]] = {
    "SEQ_CLS": classification_pb2.ClassifyRequest,
    "TOKEN_CLS": classification_pb2.ClassifyRequest,
    "QUESTION_ANS": question_answering_pb2.AnswerRequest,
    "": embedding_pb2.EmbedRequest,
}
"""What an adapter was trained for -> how it is asked."""
WRITTEN = generation_pb2.GenerateRequest
BODIES: dict[str, dict[str, Any]] = {
    "/classify": {"input": ["Ann left", ["Ann left", "it"], [5, 6]], "use_activation": False},
    "/v1/classify": {"input": "Ann left", "add_special_tokens": False},
    "/score": {"text_1": "Ann left", "text_2": ["the city", "it"], "timeout": 1.0},
    "/v1/score": {"text_1": ["Ann left", ""], "text_2": ["the city", "it"], "user": "a"},
    "/rerank": {"query": "Who left?", "documents": ["Ann", {"text": "Bob"}], "top_n": 1},
    "/v2/rerank": {"query": "", "documents": ["Ann"] * 70, "return_documents": False},
    "/v1/embeddings": {"input": ["Ann left", [5, 6]], "dimensions": 2, "encoding_format": "float"},
    "/v1/completions": {"prompt": "Ann left", "decoder_prompt": [5], "echo": False},
    "/v1/messages": {
        "max_tokens": 5, "stop_sequences": ["."], "metadata": {"user_id": "a"},
        "system": [{"type": "text", "text": "Be brief."}],
        "messages": [
            {"role": "user", "content": [{"type": "image", "source": {
                "type": "base64", "media_type": "image/png", "data": "aGk="}}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""},
                {"type": "tool_use", "id": "1", "name": "look", "input": {}}]},
            {"role": "system", "content": "It is Monday."},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": [], "is_error": True},
                {"type": "text", "text": "Who left?"}]},
        ],
        "tools": [{"name": "look", "input_schema": {"type": "object"}, "strict": True}],
        "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {}}},
    },
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "Who left?"}]},
}  # fmt: skip
"""Route -> what is nearly asked there."""


@contextmanager
def text_targets() -> Iterator[list[Target]]:
    """Yield what takes requests for texts that are read as wholes."""
    with acting(LOCAL_ADMIN), asyncio.Runner() as runner:
        reads, writes = runner.run(_reads()), Served(**SEQ2SEQ)
        gateway, stack = runner.run(_opened(cast(Backend, _Behind(reads))))

        def read(given: tuple[str, bytes]) -> str:
            return runner.run(_outcome(lambda: _read(reads[given[0]], *given)))

        def write(raw: bytes) -> str:
            return runner.run(_outcome(lambda: _write(writes, raw)))

        def post(given: tuple[str, bytes]) -> str:
            return runner.run(_post(gateway, *given))

        try:
            yield [
                Target("texts that are read", _messages(), read),
                Target("texts that are written", _written(), write),
                Target("bodies", _bodies(), post),
            ]
        finally:
            runner.run(stack.aclose())


@st.composite
def _messages(draw: st.DrawFn) -> tuple[str, bytes]:
    """A task, and a request for it."""
    task = draw(st.sampled_from(sorted(TEXTS)))
    message: Any = TEXTS[task]()
    for _ in range(draw(st.integers(1, 3))):
        if task == "QUESTION_ANS":
            message.inputs.add(question=draw(SENT), context=draw(SENT))
            continue
        text = message.inputs.add(text=draw(SENT))
        if task == "SEQ_CLS" and draw(st.booleans()):
            text.text_pair = draw(SENT)
        elif draw(st.integers(0, 3)) == 0:
            text.ClearField("text")
            text.token_ids.extend(draw(TOKENS))
    return task, _with_faults(draw, message)


@st.composite
def _written(draw: st.DrawFn) -> bytes:
    """A request for a text that is written to another."""
    message = WRITTEN()
    if draw(st.booleans()):
        message.prompt = draw(SENT)
    else:
        message.prompt_token_ids.extend(draw(TOKENS))
    if draw(st.booleans()):
        message.decoder_prompt = draw(SENT)
    elif draw(st.booleans()):
        message.decoder_prompt_token_ids.extend(draw(TOKENS))
    if draw(st.booleans()):
        message.sampling.max_tokens = draw(st.integers(0, 25))
    return _with_faults(draw, message)


def _with_faults(draw: st.DrawFn, message: Message) -> bytes:
    """Return `message`, half of the time with fields that have anything, as bytes."""
    fields = [field.name for field in message.DESCRIPTOR.fields]
    raw = draw(requests(cast(Any, message.DESCRIPTOR)))
    try:
        other = type(message).FromString(raw)
    except DecodeError:
        return raw if draw(st.integers(0, 3)) == 0 else message.SerializeToString()
    taken = draw(st.sets(st.sampled_from(fields), max_size=2)) if draw(st.booleans()) else set()
    for name in fields:
        if name not in taken:
            other.ClearField(name)
    message.MergeFrom(other)
    return message.SerializeToString()


@st.composite
def _bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """A route, and a body for it with a fault or two."""
    route = draw(st.sampled_from(sorted(BODIES)))
    body = {"model": "adapter"} | BODIES[route]
    for key in [*body]:
        if draw(st.integers(0, 3)) == 0:
            body[key] = draw(WORDS | st.lists(WORDS, max_size=3))
    for _ in range(draw(st.integers(0, 2))):
        body = draw(mangled(body))
    return route, json.dumps(body).encode()


async def _reads() -> dict[str, Reads]:
    """Return the services of an encoder with an adapter for each task."""
    made: dict[str, Callable[[Ask], Any]] = {
        "SEQ_CLS": lambda ask: [len(ask.prompt) / 9],
        "TOKEN_CLS": lambda ask: [[0.5, -0.5]] * len(ask.prompt),
        "QUESTION_ANS": lambda ask: [[0.5, -0.5]] * len(ask.prompt),
        "": lambda ask: [0.5, 0, 0, 1],
    }
    tokenizer = wordpiece()
    info = encoder_info(
        tokenizer.backend_tokenizer.to_str(), kind=ModelKind.ENCODER, takes_token_types=True,
        context_length=LENGTH, vocab_size=len(tokenizer),
    )  # fmt: skip
    names = {"TOKEN_CLS": ("one", "other")}
    return {
        task: Reads(info, scores, task=task, settings=_labelled(names.get(task, ("one",))))
        for task, scores in made.items()
    }


def _labelled(names: tuple[str, ...]) -> PackageSettings:
    return PackageSettings(labels=Labels(names, ProblemType.SINGLE_LABEL))


class _Behind:
    """Stands for the server behind a gateway, whose adapter has a single output."""

    def __init__(self, reads: dict[str, Reads]) -> None:
        self._reads = reads
        model = reads[""].model
        self._service = ServerService(model, ServerConfig(model=""), cast(Any, None))

    async def info(self, _: Any) -> Any:
        return _server_wire.server_info(await self._service.GetServerInfo(cast(Any, None), CONTEXT))

    async def classify(self, request: Any, *_: Any) -> Any:
        return await _ask(self._reads["SEQ_CLS"], request)

    async def embed(self, request: Any, *_: Any) -> Any:
        return await _ask(self._reads[""], request)

    async def generate(self, *_: Any) -> Any:
        raise FailedPreconditionError("no text is continued", reason="BASE_CONTINUES_NO_TEXT")

    tokenize = generate

    async def close(self) -> None:
        pass


async def _opened(behind: Backend) -> tuple[InProcessGateway, AsyncExitStack]:
    stack = AsyncExitStack()
    return await stack.enter_async_context(InProcessGateway.opened(lambda: behind, "")), stack


async def _outcome(ask: Callable[[], Awaitable[str]]) -> str:
    """Return what came of a request in a word."""
    try:
        return await ask()
    except DecodeError:
        return "no message"
    except LoramuxError as error:
        if not error.reason:
            raise FindingError("a refusal without a reason") from error
        return error.reason


async def _read(reads: Reads, task: str, raw: bytes) -> str:
    """Ask for what is made of texts, and look at what the engine is told of them."""
    request: Any = TEXTS[task].FromString(raw)
    if task:
        request.adapter = "adapter"
    reads.engine.sent.clear()
    response = await _ask(reads, request)
    results = response.embeddings if task == "" else response.results
    assert len(results) == len(request.inputs), f"{len(results)} results"
    for sent in reads.engine.sent:
        assert 0 < len(sent.prompt) <= LENGTH, f"{len(sent.prompt)} tokens"
        assert max(sent.prompt) < reads.model.vocab_size
        assert 0 <= sent.second_from < len(sent.prompt), f"a second text at {sent.second_from}"
    return "answered"


async def _ask(reads: Reads, request: Any) -> Any:
    if isinstance(request, classification_pb2.ClassifyRequest):
        return await reads.classification.Classify(request, CONTEXT)
    if isinstance(request, embedding_pb2.EmbedRequest):
        return await reads.embedding.Embed(request, CONTEXT)
    return await reads.answering.Answer(request, CONTEXT)


async def _write(served: Served, raw: bytes) -> str:
    """Ask for what is written to a text, and look at what the engine is told; then go away."""
    request = WRITTEN.FromString(raw)
    for field in ("adapter", "adapters"):  # there are none
        request.ClearField(field)
    served.engine.sent.clear()
    task = asyncio.ensure_future(served.service.Generate(request, CONTEXT))
    for _ in range(MAX_TURNS):
        await asyncio.sleep(0)
        if served.engine.ids or task.done():
            break
    else:
        raise FindingError("it is neither refused nor asked for")
    for sent in (each.ask for each in served.engine.sent if isinstance(each, Submit)):
        num_written = len(sent.prompt) - sent.num_source
        assert 0 < sent.num_source <= served.model.source_length
        assert 0 < num_written < served.model.output_length
        assert sent.sampling.max_tokens <= served.model.output_length - num_written
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return "asked"


async def _post(gateway: InProcessGateway, route: str, body: bytes) -> str:
    reply = await gateway.post(route, body)
    reported = json.loads(reply.body)
    if reply.status >= 400:
        assert reported["error"]["message"], "a refusal without a word"
    if reply.status in (500, 501):
        raise FindingError(f"{route}: {reply.status} {reply.body!r}")
    return str(reply.status)
