"""Span attributes of a request, by OpenTelemetry's conventions for generative AI; no text."""

from collections.abc import Sequence

from loramux.v1 import generation_pb2
from loramux_server.observe.spans import Attributes
from loramux_server.services.generation.output import Output
from loramux_server.services.observer import Observer

_FINISH = {
    generation_pb2.FINISH_REASON_STOP: "stop",
    generation_pb2.FINISH_REASON_LENGTH: "length",
    generation_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
}

CLASSIFY = "classify"
ANSWER = "answer"
EMBED = "embeddings"


def operation_of(request: generation_pb2.GenerateRequest) -> str:
    """Return the conventions' name for the operation of `request`."""
    return "chat" if request.messages else "text_completion"


def request_attributes(
    *,
    operation: str,
    model: str,
    request_id: str,
    sampling: generation_pb2.SamplingParams,
    num_prompt: int,
    adapter: str,
    digest: str | None,
) -> Attributes:
    """Return what is known at submission; `sampling` has all defaults filled in."""
    form = sampling.structured_output.WhichOneof("form")
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "loramux",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.response.id": request_id,
        "gen_ai.request.choice.count": sampling.n,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.seed": sampling.seed,
        "gen_ai.output.type": "json" if form in ("json_schema", "json_object") else "text",
        "gen_ai.usage.input_tokens": num_prompt,
        "loramux.adapter.name": adapter or None,
        "loramux.adapter.digest": digest,
    }


def asked_to_read(
    *,
    operation: str,
    model: str,
    request_id: str,
    num_texts: int,
    num_tokens: int,
    adapter: str,
    digest: str | None,
) -> Attributes:
    """Return the same for texts that are only read, for which the conventions have few names."""
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "loramux",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.response.id": request_id,
        "gen_ai.usage.input_tokens": num_tokens,
        "loramux.texts": num_texts,
        "loramux.adapter.name": adapter or None,
        "loramux.adapter.digest": digest,
    }


def answered(outputs: Sequence[Output], observer: Observer) -> Attributes:
    """Return what is known of the answer so far."""
    reasons = [_FINISH[output.finish_reason] for output in outputs if output.is_finished]
    timing = observer.timing()
    return {
        "gen_ai.usage.output_tokens": observer.num_generated,
        "gen_ai.response.finish_reasons": reasons or None,
        "gen_ai.response.time_to_first_chunk": timing.time_to_first_token_seconds or None,
    }
