"""Strategies for hypothesis: inputs that are nearly right."""

import json
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st
from peft import IA3Config, LoraConfig, PromptTuningConfig

from tests.adapters.files import CONFIG, TENSORS, data, header, manifest, tensor_file
from tests.adapters.test_tensor_fuzz import files

MAX_DEPTH = 4
ODD_TEXT = [
    "", "\0", "../../etc/passwd", "public/a:1", "a" * 300, "\ud7ff\U0001f600", "a@sha256:", "-1",
    "latest", "a/b/c", "\u202e", "{{7*7}}", "%s%n",
]  # fmt: skip
NUMBERS = st.sampled_from([-(2**31), -1, 0, 1, 2, 7, 255, 4096, 2**31 - 1])
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(ODD_TEXT),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)

FULL_CONFIGS: list[dict[str, Any]] = [
    json.loads(json.dumps(config.to_dict(), default=sorted))
    for config in (
        LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]),
        IA3Config(task_type="CAUSAL_LM", target_modules=["q_proj"], feedforward_modules=[]),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, token_dim=4),
    )
]
"""With every field that PEFT writes."""

__all__ = ["configs", "files", "manifests", "metadata", "mutated", "requests"]


@st.composite
def mangled(draw: st.DrawFn, value: Any) -> Any:
    """`value` with one place in it taken away, put twice, or made into something else."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(value)))
        kind = draw(st.sampled_from(["in", "in", "gone", "renamed", "more"]))
        if kind == "gone":
            return {name: inner for name, inner in value.items() if name != key}
        if kind == "renamed":
            return {(name + "_" if name == key else name): v for name, v in value.items()}
        if kind == "more":
            return value | {draw(st.sampled_from(ODD_TEXT)): draw(JUNK)}
        return value | {key: draw(mangled(value[key]))}
    if isinstance(value, list) and value and draw(st.booleans()):
        index = draw(st.integers(0, len(value) - 1))
        return [*value[:index], draw(mangled(value[index])), *value[index + 1 :]]
    return draw(JUNK)


@st.composite
def manifests(draw: st.DrawFn) -> bytes:
    """A package whose manifest has a fault or two."""
    text = json.dumps(draw(mangled(draw(mangled(json.loads(manifest()))))))
    if draw(st.integers(0, 4)) == 0:
        text = draw(mutated(text.encode())).decode("utf-8", "replace")
    return tensor_file(header(TENSORS, {"loramux.manifest": text}), data())


@st.composite
def configs(draw: st.DrawFn) -> bytes:
    """A package whose PEFT config has a fault or two."""
    config = draw(mangled(draw(mangled(draw(st.sampled_from([CONFIG, *FULL_CONFIGS]))))))
    return tensor_file(header(TENSORS, {"loramux.manifest": manifest(config)}), data())


@st.composite
def mutated(draw: st.DrawFn, raw: bytes) -> bytes:
    """`raw` with a few bytes changed, taken away or added."""
    changed = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(changed)))
        kind = draw(st.sampled_from(["change", "cut", "add", "end"]))
        if kind == "change" and place < len(changed):
            changed[place] = draw(st.integers(0, 255))
        elif kind == "cut":
            del changed[place : place + draw(st.integers(1, 8))]
        elif kind == "add":
            changed[place:place] = draw(st.binary(min_size=1, max_size=8))
        else:
            del changed[place:]
    return bytes(changed)


@st.composite
def requests(draw: st.DrawFn, descriptor: Descriptor) -> bytes:
    """A message of this kind with some of its fields, one time in three damaged."""
    raw: bytes = draw(_message(descriptor, MAX_DEPTH)).SerializeToString()
    return draw(mutated(raw)) if draw(st.integers(0, 2)) == 0 else raw


@st.composite
def _message(draw: st.DrawFn, descriptor: Descriptor, depth: int) -> Message:
    message: Message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if draw(st.booleans()):
            _fill(draw, message, field, depth)
    return message


def _fill(draw: st.DrawFn, message: Message, field: FieldDescriptor, depth: int) -> None:
    is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
    if field.message_type is not None:
        if depth and not is_map:
            inner = draw(_message(field.message_type, depth - 1))
            own = getattr(message, field.name)
            (own.add() if field.is_repeated else own).CopyFrom(inner)
        return
    if field.is_repeated:
        getattr(message, field.name).extend(draw(st.lists(_scalar(field), max_size=4)))
    else:
        setattr(message, field.name, draw(_scalar(field)))


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return st.binary(max_size=32)
        return st.sampled_from([*ODD_TEXT, "hello", "poet"])
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return st.sampled_from([0.0, -1.0, 0.5, 1.0, 2.0, 1e30, float("inf"), float("nan")])
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return st.integers(0, 9)
    return NUMBERS.map(abs) if "UINT" in _type_name(field) else NUMBERS


def _type_name(field: FieldDescriptor) -> str:
    names: Iterator[str] = (
        name for name, value in vars(FieldDescriptor).items()
        if name.startswith("CPPTYPE_") and value == field.cpp_type
    )  # fmt: skip
    return next(names)


KEYS = [
    "authorization",
    "x-request-id",
    "grpc-timeout",
    "traceparent",
    "x-odd",
    "loramux-error-bin",
]
VALUES = [
    "", " ", "Bearer", "Bearer ", "bearer lmx_", "Bearer lmx_a_b", "Bearer lmx_" + "a" * 60, "1S",
    "99999999H", "-1n", "00-0-0-00", "a" * 129, "a" * 4000, "\x7f", "lmx_abcdefghijkl_" + "b" * 43,
]  # fmt: skip


def metadata() -> st.SearchStrategy[list[tuple[str, str | bytes]]]:
    """Pairs that a caller may add to a call: some are what the server looks at."""
    plain = st.tuples(st.sampled_from(KEYS[:-1]), st.sampled_from(VALUES))
    binary = st.tuples(st.sampled_from([KEYS[-1], "x-odd-bin"]), st.binary(max_size=64))
    return st.lists(plain | binary, max_size=5)
