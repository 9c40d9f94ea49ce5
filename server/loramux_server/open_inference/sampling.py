"""Sampling parameters in requests of the Open Inference Protocol: as parameters, or as JSON.

Names are vLLM's, as in Triton's vLLM backend. A number may be sent as a string: for a long time
Triton's clients had no other way to send a fraction.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from loramux.errors import InvalidArgumentError
from loramux.v1 import generation_pb2
from loramux_adapters.errors import shown
from loramux_adapters.generation import MAX_STOP_BYTES, MAX_STOP_TOKENS, MAX_STOPS
from loramux_server.field_errors import at_fault, invalid
from loramux_server.inference import open_inference_pb2
from loramux_server.services.limits import MAX_BAD_WORD_BYTES, MAX_BAD_WORDS

INT32 = Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 31)]
_INT64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
# Lengths are checked here, before values are copied for each text.
_STOP = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_STOP_BYTES)]
_STOPS = Annotated[list[_STOP], msgspec.Meta(max_length=MAX_STOPS)]
_BAD_WORD = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_BAD_WORD_BYTES)]
_BAD_WORDS = Annotated[list[_BAD_WORD], msgspec.Meta(max_length=MAX_BAD_WORDS)]
_STOP_TOKENS = Annotated[list[_INT64], msgspec.Meta(max_length=MAX_STOP_TOKENS)]

_FIELDS: dict[str, tuple[Any, str]] = {
    "temperature": (float, "a number"),
    "top_p": (float, "a number"),
    "top_k": (INT32, "a 32-bit integer"),
    "min_p": (float, "a number"),
    "max_tokens": (INT32, "a 32-bit integer"),
    "min_tokens": (INT32, "a 32-bit integer"),
    "seed": (_INT64, "a 64-bit integer"),
    "stop": (
        _STOP | _STOPS,
        f"a string of 1 to {MAX_STOP_BYTES} bytes, or a list of at most {MAX_STOPS}",
    ),
    "bad_words": (
        _BAD_WORDS,
        f"a list of at most {MAX_BAD_WORDS} strings of 1 to {MAX_BAD_WORD_BYTES} bytes",
    ),
    "stop_token_ids": (_STOP_TOKENS, f"a list of at most {MAX_STOP_TOKENS} token ids"),
    "presence_penalty": (float, "a number"),
    "frequency_penalty": (float, "a number"),
    "repetition_penalty": (float, "a number"),
    "ignore_eos": (bool, "true or false"),
    "include_stop_str_in_output": (bool, "true or false"),
    "skip_special_tokens": (bool, "true or false"),
}
"""Name -> type, and its description in errors."""
_OURS = {"include_stop_str_in_output": "include_stop"}
"""Name -> field of SamplingParams, where they differ."""
_INSTEAD = {
    "lora_name": "name the adapter in model_name",
    "n": "each text of text_input gets one completion",
    "timeout": "set a deadline for the call",
}
"""Unsupported name -> what to use instead."""


@dataclass(frozen=True, slots=True)
class ParameterValue:
    """A value and its path in the request."""

    path: str
    value: object

    def as_type(self, kind: Any, expected: str) -> Any:  # noqa: ANN401
        """Return the value as a `kind`, which errors describe as `expected`.

        Raises:
            InvalidArgumentError: It cannot be converted.
        """
        try:
            return msgspec.convert(self.value, kind, strict=False)
        except msgspec.ValidationError:
            raise invalid(self.path, self.value, expected) from None


def parameters_of(
    parameters: Mapping[str, open_inference_pb2.InferParameter],
) -> dict[str, ParameterValue]:
    """Return the parameters of a request; one without a value is None."""
    found = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        found[name] = ParameterValue(
            f"parameters.{name}", getattr(parameter, kind) if kind else None
        )
    return found


def json_of(raw: bytes) -> dict[str, ParameterValue]:
    """Return the fields of an element of `sampling_parameters`.

    Raises:
        InvalidArgumentError: It is not a JSON object.
    """
    try:
        found = msgspec.json.decode(raw, type=dict[str, object])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise invalid("sampling_parameters", raw, "a JSON object") from None
    # null counts as missing.
    return {
        name: ParameterValue(f"sampling_parameters.{name}", value)
        for name, value in found.items()
        if value is not None
    }


def sampling_of(given: Mapping[str, ParameterValue]) -> generation_pb2.SamplingParams:
    """Return the sampling parameters. Ranges of values are not checked here.

    Raises:
        InvalidArgumentError: A field is unknown, too long, or has the wrong type.
    """
    fields: dict[str, Any] = {}
    for name, one in given.items():
        if name not in _FIELDS:
            raise _unknown(name, one)
        value = one.as_type(*_FIELDS[name])
        fields[_OURS.get(name, name)] = [value] if isinstance(value, str) else value
    return generation_pb2.SamplingParams(**fields)


def _unknown(name: str, one: ParameterValue) -> InvalidArgumentError:
    why = _INSTEAD.get(name, f"supported are {', '.join(sorted(_FIELDS))}")
    field = one.path.partition(".")[0]  # the rest may be anything
    return at_fault(field, f"{shown(one.path)} is not supported: {why}")
