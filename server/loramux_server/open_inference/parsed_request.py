"""Parses requests of the Open Inference Protocol.

Tensors have the same names and meaning as in Triton's vLLM backend.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from loramux.errors import LoramuxError
from loramux.v1 import generation_pb2
from loramux_adapters.errors import shown
from loramux_server.field_errors import invalid, wrong
from loramux_server.inference import open_inference_pb2
from loramux_server.open_inference.sampling import (
    INT32,
    ParameterValue,
    json_of,
    parameters_of,
    sampling_of,
)
from loramux_server.open_inference.tensors import BOOL, BYTES, UINT32, Tensor, read_tensor
from loramux_server.services.limits import MAX_REQUEST_ID, MAX_ROUTING_KEY
from loramux_server.services.pooling.input_limits import MAX_INPUTS

TEXT_INPUT = "text_input"
STREAM = "stream"
SAMPLING_PARAMETERS = "sampling_parameters"
EXCLUDE_INPUT = "exclude_input_in_output"
TEXT_OUTPUT = "text_output"
FINISH_REASON = "finish_reason"
NUM_INPUT_TOKENS = "num_input_tokens"
NUM_OUTPUT_TOKENS = "num_output_tokens"

OUTPUTS = {
    TEXT_OUTPUT: BYTES,
    FINISH_REASON: BYTES,
    NUM_INPUT_TOKENS: UINT32,
    NUM_OUTPUT_TOKENS: UINT32,
}
"""Output -> its datatype; each output has one element per text."""
_RETURNED = {f"return_{name}": name for name in OUTPUTS if name != TEXT_OUTPUT}
"""Input -> the output that it switches on or off."""
INPUTS = {
    TEXT_INPUT: (BYTES, MAX_INPUTS),
    STREAM: (BOOL, 1),
    SAMPLING_PARAMETERS: (BYTES, MAX_INPUTS),
    EXCLUDE_INPUT: (BOOL, 1),
    **dict.fromkeys(_RETURNED, (BOOL, 1)),
}
"""Input -> its datatype and maximum number of elements."""
_ROUTING_KEY = "routing_key"
_ADDS_TOKENS = "add_special_tokens"
_PARSES_TOKENS = "parse_special_tokens"
_DECODER_PROMPT = "decoder_prompt"
_PRIORITY = "priority"
_CACHE_SALT = "cache_salt"
_TRUNCATION = "truncate_prompt_tokens"
_PARAMETERS: dict[str, tuple[Any, str, Any]] = {
    _ROUTING_KEY: (str, "a string", ""),
    _ADDS_TOKENS: (bool, "true or false", True),
    _PARSES_TOKENS: (bool, "true or false", False),
    _DECODER_PROMPT: (str, "a string", ""),
    _PRIORITY: (INT32, "a 32-bit integer", 0),
    _CACHE_SALT: (str, "a string", ""),
    _TRUNCATION: (INT32, "a 32-bit integer", None),
    # Has no effect: the last response is never empty.
    "triton_enable_empty_final_response": (bool, "true or false", False),
}
"""Parameters other than sampling's -> type, its description in errors, and default."""


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A parsed request."""

    texts: list[str]
    samplings: list[generation_pb2.SamplingParams]
    """One for each text."""
    paths: list[dict[str, str]]
    """For each text: sampling field -> its path in the request."""
    shape: list[int]
    """The shape of the texts, and of all outputs."""
    is_stream: bool
    has_input: bool
    """Whether each text is prepended to its completion."""
    outputs: tuple[str, ...]
    """In the order of the response."""
    routing_key: str
    adds_tokens: bool
    """Whether the tokenizer adds its special tokens to each text."""
    parses_tokens: bool
    """Whether text such as `</s>` becomes a control token."""
    decoder_prompt: str
    """Beginning of the decoder's text for every input; for encoder-decoders."""
    priority: int
    """Order among the requests of the tenant; lower goes first."""
    cache_salt: str
    """Separates entries of the prefix cache."""
    max_prompt_tokens: int | None
    """Tokens of each text that are kept; None for all."""
    is_raw: bool
    """Whether tensors are in raw contents, in request and response."""

    def field_of_text(self, index: int) -> str:
        """Return the field name of the text at `index`, for errors."""
        return TEXT_INPUT if len(self.texts) == 1 else f"{TEXT_INPUT}[{index}]"

    def renamed(self, error: LoramuxError, index: int) -> LoramuxError:
        """Return `error`, of the text at `index`, with the field names of this request.

        The original names a field of a GenerateRequest.
        """
        text, ours = str(error), error.field
        theirs = {"prompt": self.field_of_text(index), "adapter": "model_name"}.get(ours, ours)
        if ours.startswith("sampling."):
            name = ours.removeprefix("sampling.")
            theirs = self.paths[index].get(name, name)
        # Messages begin with the field, except those about an adapter, which have its name.
        if theirs != ours and ours != "adapter" and text.startswith(ours):
            text = theirs + text.removeprefix(ours)
        return type(error)(
            text,
            reason=error.reason,
            field=theirs,
            retry_delay=error.retry_delay,
            quota=error.quota,
        )


def parse_request(
    request: open_inference_pb2.ModelInferRequest, *, goes_on: bool = True
) -> ParsedRequest:
    """Parse `request`; `goes_on` is False for encoder-decoders, which do not continue the text.

    Raises:
        InvalidArgumentError: A field is invalid; the message names it.
    """
    if len(request.id) > MAX_REQUEST_ID or not request.id.isprintable():
        raise invalid("id", request.id, f"at most {MAX_REQUEST_ID} printable characters")
    inputs = _inputs(request)
    if TEXT_INPUT not in inputs:
        there = ", ".join(map(shown, inputs)) or "none"
        raise wrong("inputs", f"has no {TEXT_INPUT!r}; it has {there}")
    texts = [_text(inputs[TEXT_INPUT], index) for index in range(len(inputs[TEXT_INPUT].elements))]
    parameters = parameters_of(request.parameters)
    own = {
        name: parameters.pop(name).as_type(kind, expected) if name in parameters else default
        for name, (kind, expected, default) in _PARAMETERS.items()
    }
    if len(own[_ROUTING_KEY]) > MAX_ROUTING_KEY:
        raise invalid(
            f"parameters.{_ROUTING_KEY}",
            own[_ROUTING_KEY],
            f"at most {MAX_ROUTING_KEY} characters",
        )
    given = _given(parameters, inputs.get(SAMPLING_PARAMETERS), len(texts))
    num_each = len(texts) // len(given)
    is_stream = _flag(inputs, STREAM, default=False)
    if is_stream and len(texts) > 1:
        raise invalid(f"{TEXT_INPUT}.shape", list(inputs[TEXT_INPUT].shape), "[1] with stream")
    has_input = not _flag(inputs, EXCLUDE_INPUT, default=is_stream or not goes_on)
    if has_input and (is_stream or not goes_on):
        where = "with stream" if is_stream else "because the base model is an encoder-decoder"
        raise invalid(EXCLUDE_INPUT, False, f"true or no value {where}")
    return ParsedRequest(
        texts=texts,
        samplings=[sampling_of(each) for each in given] * num_each,
        paths=[{name: one.path for name, one in each.items()} for each in given] * num_each,
        shape=list(inputs[TEXT_INPUT].shape),
        is_stream=is_stream,
        has_input=has_input,
        outputs=_outputs(request.outputs, inputs),
        routing_key=own[_ROUTING_KEY],
        adds_tokens=own[_ADDS_TOKENS],
        parses_tokens=own[_PARSES_TOKENS],
        decoder_prompt=own[_DECODER_PROMPT],
        priority=own[_PRIORITY],
        cache_salt=own[_CACHE_SALT],
        max_prompt_tokens=own[_TRUNCATION],
        is_raw=bool(request.raw_input_contents),
    )


def _inputs(request: open_inference_pb2.ModelInferRequest) -> dict[str, Tensor]:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise wrong(
            "raw_input_contents",
            f"has {len(raw)} entries; expected one for each of {len(request.inputs)} inputs",
        )
    found: dict[str, Tensor] = {}
    for index, given in enumerate(request.inputs):
        field = f"inputs[{index}].name"
        if given.name not in INPUTS:
            raise invalid(field, given.name, f"one of {', '.join(INPUTS)}")
        if given.name in found:
            raise invalid(field, given.name, "each input once")
        if raw and given.HasField("contents"):
            raise wrong(f"{given.name}.contents", "is set; expected none with raw_input_contents")
        datatype, most = INPUTS[given.name]
        found[given.name] = read_tensor(given, raw[index] if raw else None, datatype, most)
    return found


def _text(tensor: Tensor, index: int) -> str:
    raw: bytes = tensor.elements[index]
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = ""
    if not text:
        raise invalid(f"{TEXT_INPUT}[{index}]", raw, "non-empty UTF-8 text")
    return text


def _given(
    parameters: dict[str, ParameterValue], tensor: Tensor | None, num_texts: int
) -> list[dict[str, ParameterValue]]:
    """Return the sampling parameters: one entry for all texts, or one for each."""
    if tensor is None:
        return [parameters]
    if len(tensor.elements) not in (1, num_texts):
        expected = "[1]" if num_texts == 1 else f"[1] or [{num_texts}], one for each text"
        raise invalid(f"{SAMPLING_PARAMETERS}.shape", list(tensor.shape), expected)
    found = []
    for raw in tensor.elements:
        given = json_of(raw)
        if twice := sorted(parameters.keys() & given.keys()):
            said = f"has {shown(twice[0])}, which parameters also has; set it once"
            raise wrong(SAMPLING_PARAMETERS, said)
        found.append(parameters | given)
    return found


def _flag(inputs: dict[str, Tensor], name: str, *, default: bool) -> bool:
    return bool(inputs[name].elements[0]) if name in inputs else default


def _outputs(
    requested: Iterable[open_inference_pb2.ModelInferRequest.InferRequestedOutputTensor],
    inputs: dict[str, Tensor],
) -> tuple[str, ...]:
    found = []
    for index, each in enumerate(requested):
        field = f"outputs[{index}].name"
        if each.name not in OUTPUTS:
            raise invalid(field, each.name, f"one of {', '.join(OUTPUTS)}")
        if each.name in found:
            raise invalid(field, each.name, "each output once")
        if each.parameters:
            raise invalid(f"outputs[{index}].parameters", sorted(each.parameters)[0], "none")
        found.append(each.name)
    if found:
        return tuple(found)
    unwanted = {name for flag, name in _RETURNED.items() if not _flag(inputs, flag, default=True)}
    return tuple(name for name in OUTPUTS if name not in unwanted)
