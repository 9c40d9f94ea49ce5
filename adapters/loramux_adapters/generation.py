"""Generation defaults: an adapter's sampling parameters for requests that do not set them.

The fields are those of `loramux.v1.SamplingParams` that do not depend on the request, and the
tokens with which an encoder-decoder begins its output.
"""

from collections.abc import Mapping
from typing import cast

from loramux_adapters.errors import PackageError, shown

MAX_TEMPERATURE = 100.0
MIN_REPETITION_PENALTY = 0.001
"""Dividing a logit by less may overflow float32."""
MAX_REPETITION_PENALTY = 100.0
MAX_PENALTY = 2.0
MAX_STOPS = 8
MAX_STOP_BYTES = 256
MAX_STOP_TOKENS = 128
_MAX_INTEGER = (1 << 31) - 1

INTEGERS: Mapping[str, tuple[int, int]] = {
    "max_tokens": (1, _MAX_INTEGER),
    "min_tokens": (0, _MAX_INTEGER),
    "top_k": (-1, _MAX_INTEGER),
}
"""Field -> its minimum and maximum."""
NUMBERS: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, MAX_TEMPERATURE),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY),
    "presence_penalty": (-MAX_PENALTY, MAX_PENALTY),
    "frequency_penalty": (-MAX_PENALTY, MAX_PENALTY),
}
LISTS = ("stop", "stop_token_ids")
DECODER_START, FORCED_BOS = "decoder_start_token_id", "forced_bos_token_id"
TOKENS = (DECODER_START, FORCED_BOS)
"""First tokens of a decoder's output in an encoder-decoder, by transformers' names."""
FIELDS = (*INTEGERS, *NUMBERS, *LISTS, *TOKENS)


def check_generation(defaults: Mapping[str, object], where: str) -> Mapping[str, object]:
    """Return `defaults` if each is known and in range; messages begin with `where`.

    Raises:
        PackageError: One is not; the message names it, its value and what is expected.
    """
    for name, value in defaults.items():
        if name in INTEGERS:
            low, high = INTEGERS[name]
            if type(value) is not int or not low <= value <= high:
                raise _fault(where, name, value, f"an integer from {low} to {high}")
        elif name in NUMBERS:
            _check_number(where, name, value)
        elif name in TOKENS:
            if type(value) is not int or not 0 <= value <= _MAX_INTEGER:
                raise _fault(where, name, value, "a token id")
        elif name == "stop":
            _check_stop(where, value)
        elif name == "stop_token_ids":
            _check_stop_tokens(where, value)
        else:
            raise PackageError(
                f"{where}: {shown(name)} is not a generation default; expected one of "
                f"{', '.join(FIELDS)}",
                "INVALID_ADAPTER_CONFIG",
            )
    least, most = defaults.get("min_tokens"), defaults.get("max_tokens")
    if isinstance(least, int) and isinstance(most, int) and least > most:
        raise _fault(where, "min_tokens", least, f"at most max_tokens, {most}")
    return defaults


def _check_number(where: str, name: str, value: object) -> None:
    low, high = NUMBERS[name]
    is_in_range = type(value) in (int, float) and low <= cast(float, value) <= high
    # top_p 0 would leave no token.
    is_open = name == "top_p"
    if not is_in_range or (is_open and value == low):
        begin = "above" if is_open else "from"
        raise _fault(where, name, value, f"a number {begin} {low:g} to {high:g}")


def _check_stop(where: str, value: object) -> None:
    is_right = (
        isinstance(value, list)
        and len(value) <= MAX_STOPS
        and all(
            isinstance(stop, str) and 1 <= len(stop.encode()) <= MAX_STOP_BYTES for stop in value
        )
    )
    if not is_right:
        expected = f"a list of at most {MAX_STOPS} strings of 1 to {MAX_STOP_BYTES} bytes"
        raise _fault(where, "stop", value, expected)


def _check_stop_tokens(where: str, value: object) -> None:
    is_right = (
        isinstance(value, list)
        and len(value) <= MAX_STOP_TOKENS
        and all(type(token) is int and 0 <= token <= _MAX_INTEGER for token in value)
    )
    if not is_right:
        raise _fault(
            where, "stop_token_ids", value, f"a list of at most {MAX_STOP_TOKENS} token ids"
        )


def _fault(where: str, name: str, value: object, expected: str) -> PackageError:
    return PackageError(
        f"{where}: {name} is {shown(value)}; expected {expected}", "INVALID_ADAPTER_CONFIG"
    )
