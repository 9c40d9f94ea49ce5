"""The route `/v1/responses`."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request

from loramux.gateway.answering import CancelOnDisconnect
from loramux.gateway.backend import Backend
from loramux.gateway.caller import caller_of
from loramux.gateway.models import reported
from loramux.gateway.parsing import OPENAI, UnsupportedFields, parse
from loramux.gateway.reading import read
from loramux.gateway.responses.answering import Responding, ResponseEvents
from loramux.gateway.responses.body import ResponsesBody
from loramux.gateway.responses.grpc_requests import response_request
from loramux.gateway.responses.items import conversation_of
from loramux.gateway.responses.names import ResponsesNames
from loramux.gateway.responses.response import Response
from loramux.gateway.responses.unsupported import check_supported

_UNSUPPORTED = UnsupportedFields(harmless=OPENAI.harmless, accepted={})


async def respond(
    request: Request, backend: Backend, most_bytes: Callable[[], Awaitable[int]]
) -> CancelOnDisconnect:
    """Return the answer to `POST /v1/responses`.

    Args:
        request: The request; its `state.names` are set for errors that are raised.
        backend: The servers.
        most_bytes: Returns the size limit of a body with images.

    Raises:
        HTTPException: The body cannot be read.
        LoramuxError: The request is invalid or refused.
    """
    caller = caller_of(request.scope)
    request.state.names = ResponsesNames()
    body = parse(await read(request, most_bytes), ResponsesBody, _UNSUPPORTED)
    check_supported(body)
    conversation = conversation_of(body.instructions, body.input)
    request.state.names = names = ResponsesNames(body.called, conversation.sources)
    server = await backend.info(caller)
    body.model = reported(body.model, server)
    responding = Responding(
        backend=backend,
        caller=caller,
        requests=[response_request(body, conversation.messages, server.base_model)],
        answers=ResponseEvents(Response(body, caller.request_id), names),
        seconds=body.timeout,
    )
    return CancelOnDisconnect(responding.events if body.stream else responding.whole)
