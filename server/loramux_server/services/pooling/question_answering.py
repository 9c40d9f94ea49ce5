"""QuestionAnsweringService: finds the answers to questions in texts."""

from loramux.v1 import question_answering_pb2
from loramux_server.services.gen_ai import ANSWER
from loramux_server.services.pooling.answers import Best, Pair
from loramux_server.services.pooling.call import PoolingCall
from loramux_server.services.pooling.question_limits import (
    DEFAULT_ANSWER_TOKENS,
    check_request,
    size_of,
    windows_of,
)
from loramux_server.services.pooling.runner import PoolingRunner, postprocess
from loramux_server.services.tasks import check_answers
from loramux_server.services.texts import no_tokens
from loramux_server.transport.rpc import Context


class QuestionAnsweringService:
    """Implements `loramux.v1.QuestionAnsweringService`."""

    descriptor = question_answering_pb2.DESCRIPTOR.services_by_name["QuestionAnsweringService"]

    def __init__(self, runner: PoolingRunner) -> None:
        self._runner = runner

    async def Answer(
        self, request: question_answering_pb2.AnswerRequest, context: Context
    ) -> question_answering_pb2.AnswerResponse:
        """Answer once every question is answered."""
        opened = self._runner.opened(request, context, check_request, check_answers)
        async with opened as call:
            pairs = await self._pairs(request, call)
            size = size_of(request, self._runner.model, call.num_virtual)
            windows = windows_of(pairs, size)
            texts = [window for each in windows for window in each]
            found = await self._runner.run(call, ANSWER, texts)
            best, rest = _best(request), iter(found)
            results = await postprocess(
                found,
                lambda: [
                    best.of(pair, each, [next(rest) for _ in each])
                    for pair, each in zip(pairs, windows, strict=True)
                ],
                times=max(best.top_k, best.max_tokens),
            )
            response = question_answering_pb2.AnswerResponse(
                request_id=call.request_id,
                adapter=call.identity,
                results=results,
                timing=call.observer.timing(),
            )
            response.usage.prompt_tokens = sum(len(text.tokens) for text in texts)
            response.usage.cached_tokens = call.observer.cached_tokens(is_shared=False)
            return response

    async def _pairs(
        self, request: question_answering_pb2.AnswerRequest, call: PoolingCall
    ) -> list[Pair]:
        """Return the tokenized inputs of `request`."""
        adds = request.add_special_tokens if request.HasField("add_special_tokens") else True
        pairs = []
        for index, each in enumerate(request.inputs):
            texts = [(each.question, f"inputs[{index}].question")]
            texts.insert(
                0 if request.context_first else 1, (each.context, f"inputs[{index}].context")
            )
            (first, one), (second, other) = texts
            read = await self._runner.texts.pair(
                (first, second), (one, other), call.settings,
                parse_special=request.parse_special_tokens, add_special=adds,
            )  # fmt: skip
            pair = Pair.of(
                each.context, read, 0 if request.context_first else 1,
                tells_types=request.token_types,
            )  # fmt: skip
            if not pair.context:
                raise no_tokens(f"inputs[{index}].context")
            pairs.append(pair)
        return pairs


def _best(request: question_answering_pb2.AnswerRequest) -> Best:
    """Return how the answers to a checked request are chosen."""
    return Best(
        top_k=request.top_k if request.HasField("top_k") else 1,
        max_tokens=(
            request.max_answer_tokens
            if request.HasField("max_answer_tokens")
            else DEFAULT_ANSWER_TOKENS
        ),
        may_be_none=request.handle_impossible_answer,
        to_words=request.align_to_words if request.HasField("align_to_words") else True,
    )
