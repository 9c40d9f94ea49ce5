"""Parses request bodies.

A field that would change the answer and cannot be honoured is refused by name; null counts as
missing.
"""

import re
from collections.abc import Collection, Mapping
from functools import cache
from typing import NamedTuple, TypeVar

import msgspec

from loramux.errors import InvalidArgumentError
from loramux.gateway.refusal import invalid, unsupported

B = TypeVar("B", bound=msgspec.Struct)


class UnsupportedFields(NamedTuple):
    """Fields of an API that the bodies here lack."""

    harmless: Collection[str]
    """Fields that do not affect the answer; ignored."""
    accepted: Mapping[str, tuple[object, ...]]
    """Other fields -> the values that have no effect, and are accepted."""


OPENAI = UnsupportedFields(
    # For OpenAI's own bookkeeping.
    harmless=frozenset({
        "metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
        "service_tier", "store",
    }),
    accepted={
        "audio": (),
        "echo": (False,),  # in chats
        "function_call": ("none", "auto"),
        "functions": ([],),
        "modalities": (["text"],),
        "reasoning_effort": (),
        "suffix": ("",),
        "verbosity": (),
        "web_search_options": (),
        # vLLM's; some are fields of other requests.
        "add_special_tokens": (False,),  # in chats
        "allowed_token_ids": (),
        "bad_words": ([],),
        "cache_salt": (),  # the prefix cache is per tenant and adapter
        "chat_template": (),
        "continue_final_message": (False,),
        "documents": ([],),
        "include_reasoning": (True,),
        "kv_transfer_params": ({},),
        "logits_processors": ([],),
        "mm_processor_kwargs": ({},),
        "return_tokens_as_token_ids": (False,),
        "spaces_between_special_tokens": (True,),
        "truncate_prompt_tokens": (),
        "vllm_xargs": ({},),
    },
)  # fmt: skip


def parse(raw: bytes, kind: type[B], other_fields: UnsupportedFields = OPENAI) -> B:
    """Return `raw`, a JSON object, as a `kind`; `other_fields` are fields of its API that it lacks.

    Raises:
        InvalidArgumentError: It is not a JSON object, or a field is unknown, unsupported, missing
            or has the wrong type; the error names it.
    """
    try:
        given = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgumentError(
            f"the body is not valid JSON: {error}", reason="MALFORMED_REQUEST"
        ) from None
    if not isinstance(given, dict):
        raise InvalidArgumentError(
            f"the body is a JSON {type(given).__name__}; expected an object",
            reason="MALFORMED_REQUEST",
        )
    fields = _fields(kind)
    kept = {}
    for name, value in given.items():
        if value is None:
            continue
        if name in fields:
            kept[name] = value
        elif name in other_fields.harmless:
            continue
        elif name not in other_fields.accepted:
            raise InvalidArgumentError(
                f"{name!r} is not a field of this request", reason="UNKNOWN_PARAMETER", field=name
            )
        elif value not in other_fields.accepted[name]:
            raise unsupported(name, f"{name} is not supported; leave it out")
    for name, is_required in fields.items():
        if is_required and name not in kept:
            raise InvalidArgumentError(
                f"{name} is missing", reason="MISSING_REQUIRED_PARAMETER", field=name
            )
    return converted(kept, kind)


def converted(given: object, kind: type[B], name: str = "") -> B:
    """Return `given` as a `kind`; `name` is the field that holds it.

    Raises:
        InvalidArgumentError: A field is unknown, missing or has the wrong type; the error names it.
    """
    try:
        return msgspec.convert(given, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise _mistyped(str(error), name) from None


@cache
def _fields(kind: type[msgspec.Struct]) -> dict[str, bool]:
    """Return the names of the fields, each with whether it is required."""
    return {field.name: field.required for field in msgspec.structs.fields(kind)}


def _mistyped(message: str, name: str) -> InvalidArgumentError:
    """Return our error for msgspec's message, whose path begins with `$`, for the field `name`."""
    what, _, where = message.partition(" - at ")
    found = re.search(r"`\$(.*)`", where)
    param = (name + (found[1] if found else "")).removeprefix(".")
    what = what.replace("`", "").replace(" | null", "")
    return invalid(param, f"{param}: {what[:1].lower()}{what[1:]}" if param else what)
