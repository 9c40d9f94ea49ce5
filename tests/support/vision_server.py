"""A real gRPC server, in a thread of this process, of a base model that sees images."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import grpc

from loramux_server.access.caller import LOCAL_ADMIN, acting
from loramux_server.config import ServerConfig
from loramux_server.observe.audit import Audit
from loramux_server.observe.call_log import CallLog
from loramux_server.services.server import ServerService
from loramux_server.transport.connection_limits import ConnectionLimits, message_bytes
from loramux_server.transport.interception import around
from loramux_server.transport.listener import Listener
from loramux_server.transport.slow_readers import SlowReaderGuard
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Finish, Submit, ToEngine, Token
from tests.server.test_streaming import TOKEN, Served
from tests.support.images import TOKENIZER, VISION_MODEL, FakePreparer

CONFIG = ServerConfig(model="", max_images=3, max_image_bytes=1 << 20)


class _Anybody(grpc.aio.ServerInterceptor):
    """Lets whoever calls do all."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        @asynccontextmanager
        async def admitted(_: object) -> AsyncIterator[None]:
            with acting(LOCAL_ADMIN):
                yield

        return around(await continuation(handler_call_details), admitted)


class VisionServer:
    """Answers every request with `x`, from start to stop of a `with`."""

    def __init__(self, **of_model: Any) -> None:
        """Prepare; `of_model` is what the base model has beside or in place of VISION_MODEL."""
        self._of_model = {**VISION_MODEL, "name": "base", **of_model}
        self._is_open = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.asked: list[Ask] = []
        """What the engine was asked."""
        self.target = ""

    @property
    def texts(self) -> list[str]:
        """The prompts of what is asked."""
        return [TOKENIZER.decode(each.prompt, skip_special_tokens=False) for each in self.asked]

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        served = Served(preparer=FakePreparer(), **self._of_model)

        def answer(message: ToEngine) -> None:
            if isinstance(message, Submit):
                self.asked.append(message.ask)
                last = Token(message.request_id, TOKEN, Finish.LENGTH)
                self._loop.call_soon(served.engine.report, last)

        served.engine.process.send = answer
        size = message_bytes(CONFIG.max_images, CONFIG.max_image_bytes)
        listener = Listener(
            "127.0.0.1:0", call_log=CallLog(Audit(None), logs_calls=True),
            gate=_Anybody(),  # type: ignore[arg-type]
            reader_guard=SlowReaderGuard(30.0, lambda: None),
            limits=ConnectionLimits(max_message=size),
            drain_timeout=1.0,
        )  # fmt: skip
        info = ServerService(served.model, CONFIG, served.metrics.totals)
        await listener.open([served.service, info], None)
        self.target = listener.address
        self._is_open.set()
        await self._over.wait()
        await listener.close()
        await served.prompts.close()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._is_open.wait(60)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
