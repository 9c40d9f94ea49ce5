"""Responses of the Open Inference Protocol."""

from collections.abc import Sequence
from dataclasses import dataclass

from loramux.errors import LoramuxError
from loramux.v1 import generation_pb2
from loramux_server.inference import open_inference_pb2
from loramux_server.open_inference.parsed_request import (
    FINISH_REASON,
    INPUTS,
    NUM_INPUT_TOKENS,
    NUM_OUTPUT_TOKENS,
    OUTPUTS,
    TEXT_OUTPUT,
    ParsedRequest,
)
from loramux_server.open_inference.tensors import Tensor, write_tensor
from loramux_server.store.record import AdapterRecord

FINAL = "triton_final_response"
_DIGEST = "adapter_digest"
_FINISH = {
    generation_pb2.FINISH_REASON_UNSPECIFIED: b"None",  # as in Triton's vLLM backend
    generation_pb2.FINISH_REASON_STOP: b"stop",
    generation_pb2.FINISH_REASON_LENGTH: b"length",
}

Infer = open_inference_pb2.ModelInferResponse


@dataclass(frozen=True, slots=True)
class TextOutput:
    """The completion of one text, or its next chunk."""

    completion: generation_pb2.Completion
    num_input: int
    """Prompt tokens of the text; 0 if not known yet."""


def answer(
    request: open_inference_pb2.ModelInferRequest,
    parsed: ParsedRequest,
    record: AdapterRecord | None,
    made: Sequence[TextOutput],
) -> Infer:
    """Return the response to `request`.

    Args:
        request: The request.
        parsed: The same, parsed.
        record: The adapter that answered; None for the base model.
        made: One result for each text.
    """
    response = Infer(model_name=request.model_name, id=request.id)
    if record:
        response.model_version = str(record.version)
        response.parameters[_DIGEST].string_param = record.digest
    for name in parsed.outputs:
        elements = [_element(name, parsed, index, each) for index, each in enumerate(made)]
        write_tensor(response, Tensor(name, OUTPUTS[name], parsed.shape, elements), parsed.is_raw)
    return response


def streamed(response: Infer, *, is_last: bool) -> open_inference_pb2.ModelStreamInferResponse:
    """Return `response` as a message of a stream."""
    response.parameters[FINAL].bool_param = is_last
    return open_inference_pb2.ModelStreamInferResponse(infer_response=response)


def failed(
    request: open_inference_pb2.ModelInferRequest, error: LoramuxError
) -> open_inference_pb2.ModelStreamInferResponse:
    """Return the last message of a stream for `request`, which failed with `error`."""
    last = streamed(Infer(model_name=request.model_name, id=request.id), is_last=True)
    last.error_message = f"{error.code.name}: {error}"
    return last


def metadata(
    name: str, versions: Sequence[AdapterRecord]
) -> open_inference_pb2.ModelMetadataResponse:
    """Return the metadata of the model `name`; `versions` are its adapter's, empty for the base."""
    response = open_inference_pb2.ModelMetadataResponse(
        name=name,
        versions=[str(record.version) for record in versions],
        platform="loramux_peft" if versions else "loramux_transformers",
    )
    for each, (datatype, most) in INPUTS.items():
        response.inputs.add(name=each, datatype=datatype, shape=[1 if most == 1 else -1])
    for each, datatype in OUTPUTS.items():
        response.outputs.add(name=each, datatype=datatype, shape=[-1])
    return response


def _element(name: str, parsed: ParsedRequest, index: int, made: TextOutput) -> bytes | int:
    if name == TEXT_OUTPUT:
        before = parsed.texts[index] if parsed.has_input else ""
        return (before + made.completion.text).encode()
    if name == FINISH_REASON:
        return _FINISH[made.completion.finish_reason]
    return {
        NUM_INPUT_TOKENS: made.num_input,
        NUM_OUTPUT_TOKENS: len(made.completion.token_ids),
    }[name]
