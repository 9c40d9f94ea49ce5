"""The form that a request asks for, with checks that need no compilation."""

from typing import cast

import msgspec

from loramux.errors import InvalidArgumentError
from loramux.v1 import generation_pb2
from loramux_adapters.errors import shown
from loramux_server.field_errors import invalid, wrong
from loramux_server.forms.form import MAX_BYTES, MAX_CHOICES, MAX_NESTING, Form, FormKind
from loramux_server.wire.model_info import ModelInfo

ENDS = ("min_tokens", "stop", "stop_token_ids")
"""Defaults of an adapter that are ignored with a form, which says where a text ends."""

_FIELD = "sampling.structured_output"


def form_of(params: generation_pb2.SamplingParams) -> Form | None:
    """Return the form that `params` ask for, None if there is none."""
    wanted = params.structured_output
    name = wanted.WhichOneof("form")
    if name is None:
        return None
    kind = FormKind(name)
    if kind is FormKind.JSON_OBJECT:
        return Form(kind)
    if kind is FormKind.CHOICE:
        return Form(kind, choices=tuple(wanted.choice.texts))
    return Form(kind, cast(str, getattr(wanted, name)))


def check_form(params: generation_pb2.SamplingParams, model: ModelInfo) -> None:
    """Check the form that `params` ask for, if there is one, before it is compiled.

    Raises:
        InvalidArgumentError: It is invalid; the message names the field and what would be right.
    """
    if not params.HasField("structured_output"):
        return
    form = form_of(params)
    if form is None:
        kinds = ", ".join(kind for kind in FormKind if kind is not FormKind.TOOL_CALLS)
        raise wrong(_FIELD, f"is empty; expected one of {kinds}")
    if model.tokenizer_json is None:
        raise wrong(form.field, "is set; expected none: the base model has no tokenizer")
    if not model.eos_token_ids:
        raise wrong(form.field, "is set; expected none: the base model has no end token")
    if params.ignore_eos:
        raise wrong(
            "sampling.ignore_eos",
            "is True; expected false with structured_output, which decides where a text ends",
        )
    if params.min_tokens:
        expected = "none with structured_output, which decides where a text ends"
        raise invalid("sampling.min_tokens", params.min_tokens, expected)
    _check_texts(form)
    if form.kind is FormKind.JSON_OBJECT and not params.structured_output.json_object:
        raise wrong(form.field, "is False; expected true, or another constraint")
    if form.kind is FormKind.JSON_SCHEMA:
        _check_schema(form)
    if "%json" in form.text and form.kind is FormKind.GRAMMAR:
        raise wrong(
            form.field, 'has %json, which is not supported; write "%" "json" for the literal text'
        )


def _check_texts(form: Form) -> None:
    if form.kind is FormKind.CHOICE:
        if not 1 <= len(form.choices) <= MAX_CHOICES:
            raise wrong(
                f"{form.field}.texts",
                f"has {len(form.choices)} texts; expected 1 to {MAX_CHOICES}",
            )
        if "" in form.choices:
            raise wrong(
                f"{form.field}.texts", "has an empty text; expected texts that are not empty"
            )
    elif form.kind is not FormKind.JSON_OBJECT and not form.text.strip():
        raise invalid(form.field, form.text, "a text that is not empty")
    size = sum(len(text.encode()) for text in (form.text, *form.choices))
    if size > MAX_BYTES:
        raise wrong(form.field, f"has {size} bytes; expected at most {MAX_BYTES}")


def _check_schema(form: Form) -> None:
    try:
        schema = msgspec.json.decode(form.text)
    except RecursionError:
        raise _too_deep(form) from None
    except ValueError as error:
        message = f"is {shown(form.text)}, which is not valid JSON: {error}; expected a JSON schema"
        raise wrong(form.field, message) from None
    if not isinstance(schema, dict):
        raise invalid(form.field, form.text, "a JSON object")
    if "x-guidance" in schema:
        raise wrong(form.field, "has 'x-guidance'; expected none: only the server sets its options")
    level: list[object] = [schema]
    for _ in range(MAX_NESTING):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise _too_deep(form)


def _too_deep(form: Form) -> InvalidArgumentError:
    return wrong(
        form.field,
        f"has arrays and objects nested deeper than {MAX_NESTING - 1} levels; expected at most "
        "that",
    )
