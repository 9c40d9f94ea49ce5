"""Sampling options: conversion to and from protobuf messages."""

import json
from collections.abc import Mapping, Sequence
from typing import cast

from loramux import errors
from loramux._fitting import fitting
from loramux.types import SamplingOptions
from loramux.v1 import generation_pb2

_FORMS = tuple(
    field.name for field in generation_pb2.StructuredOutput.DESCRIPTOR.oneofs_by_name["form"].fields
)
"""Options for structured output, of which at most one is allowed."""


def add_sampling(options: Mapping[str, object], sampling: generation_pb2.SamplingParams) -> None:
    """Add `options` to `sampling`.

    Raises:
        InvalidArgumentError: A value does not fit its field, or several options for structured
            output are set.
    """
    given = dict(options)
    for name in ("stop", "bad_words"):
        if isinstance(text := given.get(name), str):
            given[name] = [text]
    _add_form(given, sampling)
    for name, value in given.items():
        with fitting(f"sampling.{name}"):
            one = generation_pb2.SamplingParams(**{name: value})  # type: ignore[arg-type]
            sampling.MergeFrom(one)


def sampling_options(message: generation_pb2.SamplingParams) -> SamplingOptions:
    """Convert sampling parameters; fields that are not set are omitted."""
    found: dict[str, object] = {}
    for field, value in message.ListFields():
        if field.name == "logit_bias":
            found[field.name] = dict(value)
        elif field.name == "structured_output":
            # None for a kind that only a newer server knows.
            if name := message.structured_output.WhichOneof("form"):
                form = getattr(message.structured_output, name)
                found[name] = list(form.texts) if name == "choice" else form
        else:
            found[field.name] = list(value) if isinstance(value, Sequence) else value
    return cast(SamplingOptions, found)


def _add_form(options: dict[str, object], sampling: generation_pb2.SamplingParams) -> None:
    """Move the option for structured output from `options` to `sampling`."""
    given = {name: options.pop(name) for name in _FORMS if name in options}
    if len(given) > 1:
        names = " and ".join(given)
        raise errors.InvalidArgumentError(
            f"{names} are both set; set one of them",
            reason="INVALID_FIELD",
            field="sampling.structured_output",
        )
    for name, value in given.items():
        with fitting(f"sampling.structured_output.{name}"):
            if isinstance(value, Mapping):
                value = json.dumps(value, ensure_ascii=False)
            elif name == "choice":
                value = generation_pb2.Choice(texts=cast(Sequence[str], value))
            form = generation_pb2.StructuredOutput(**{name: value})  # type: ignore[arg-type]
            sampling.structured_output.CopyFrom(form)
