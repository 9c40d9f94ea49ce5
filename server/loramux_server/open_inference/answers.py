"""What is said to a request of the Open Inference Protocol."""

from collections.abc import Sequence
from dataclasses import dataclass

from loramux.errors import LoramuxError
from loramux.v1 import generation_pb2
from loramux_server.inference import open_inference_pb2
from loramux_server.open_inference.asked import (
    FINISH_REASON,
    INPUTS,
    NUM_INPUT_TOKENS,
    NUM_OUTPUT_TOKENS,
    OUTPUTS,
    TEXT_OUTPUT,
    Asked,
)
from loramux_server.open_inference.tensors import Tensor, write_tensor
from loramux_server.store.record import AdapterRecord

FINAL = "triton_final_response"
_DIGEST = "adapter_digest"
_FINISH = {
    generation_pb2.FINISH_REASON_UNSPECIFIED: b"None",  # as Triton's backend for vLLM has it
    generation_pb2.FINISH_REASON_STOP: b"stop",
    generation_pb2.FINISH_REASON_LENGTH: b"length",
}

Infer = open_inference_pb2.ModelInferResponse


@dataclass(frozen=True, slots=True)
class Made:
    """What was made of one text, or the next piece of it."""

    completion: generation_pb2.Completion
    num_input: int
    """Tokens of the text; 0 where that is not told yet."""


def answer(
    request: open_inference_pb2.ModelInferRequest,
    asked: Asked,
    record: AdapterRecord | None,
    made: Sequence[Made],
) -> Infer:
    """Return the answer to `request`.

    Args:
        request: The request.
        asked: What it asks for.
        record: The adapter that answered; None for the base model.
        made: For each text.
    """
    response = Infer(model_name=request.model_name, id=request.id)
    if record:
        response.model_version = str(record.version)
        response.parameters[_DIGEST].string_param = record.digest
    for name in asked.outputs:
        elements = [_element(name, asked, index, each) for index, each in enumerate(made)]
        write_tensor(response, Tensor(name, OUTPUTS[name], asked.shape, elements), asked.is_raw)
    return response


def streamed(response: Infer, *, is_last: bool) -> open_inference_pb2.ModelStreamInferResponse:
    """Return `response` as it goes on a stream."""
    response.parameters[FINAL].bool_param = is_last
    return open_inference_pb2.ModelStreamInferResponse(infer_response=response)


def failed(
    request: open_inference_pb2.ModelInferRequest, error: LoramuxError
) -> open_inference_pb2.ModelStreamInferResponse:
    """Return what a stream is told of `error`, with which `request` ended."""
    last = streamed(Infer(model_name=request.model_name, id=request.id), is_last=True)
    last.error_message = f"{error.code.name}: {error}"
    return last


def metadata(
    name: str, versions: Sequence[AdapterRecord]
) -> open_inference_pb2.ModelMetadataResponse:
    """Return what is told of the model `name`, with the `versions` of the adapter that it is."""
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


def _element(name: str, asked: Asked, index: int, made: Made) -> bytes | int:
    if name == TEXT_OUTPUT:
        before = asked.texts[index] if asked.has_input else ""
        return (before + made.completion.text).encode()
    if name == FINISH_REASON:
        return _FINISH[made.completion.finish_reason]
    return {
        NUM_INPUT_TOKENS: made.num_input,
        NUM_OUTPUT_TOKENS: len(made.completion.token_ids),
    }[name]
