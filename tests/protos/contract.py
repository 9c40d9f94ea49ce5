"""What clients depend on of `loramux.v1`, as lines of text.

`python -m tests.protos.contract` writes them down after an addition.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor

import loramux.v1

CONTRACT = Path(__file__).with_name("contract.txt")
_TYPES = {
    getattr(FieldDescriptor, name): name.removeprefix("TYPE_").lower()
    for name in dir(FieldDescriptor)
    if name.startswith("TYPE_")
}


def contract() -> list[str]:
    """Return a line for each method, field and value of the contract, sorted."""
    folder = Path(loramux.v1.__path__[0])
    names = sorted(path.stem for path in folder.glob("*_pb2.py"))
    files = [importlib.import_module(f"loramux.v1.{name}").DESCRIPTOR for name in names]
    return sorted(line for file in files for line in _of_file(file))


def _of_file(file: FileDescriptor) -> Iterator[str]:
    for service in file.services_by_name.values():
        for method in service.methods:
            takes = "stream " * method.client_streaming + method.input_type.full_name
            gives = "stream " * method.server_streaming + method.output_type.full_name
            yield f"{service.full_name}/{method.name}: {takes} -> {gives}"
    for message in file.message_types_by_name.values():
        yield from _of_message(message)
    for enum in file.enum_types_by_name.values():
        yield from _of_enum(enum)


def _of_message(message: Descriptor) -> Iterator[str]:
    for field in message.fields:
        kind = field.message_type or field.enum_type
        shape = "repeated " if field.is_repeated else "optional " if field.has_presence else ""
        of = kind.full_name if kind else _TYPES[field.type]
        one = field.containing_oneof
        inside = f" in {one.name}" if one and not one.name.startswith("_") else ""
        yield f"{message.full_name}.{field.name} = {field.number}: {shape}{of}{inside}"
    for nested in message.nested_types:
        yield from _of_message(nested)
    for enum in message.enum_types:
        yield from _of_enum(enum)


def _of_enum(enum: EnumDescriptor) -> Iterator[str]:
    for value in enum.values:
        yield f"{enum.full_name}.{value.name} = {value.number}"


if __name__ == "__main__":
    CONTRACT.write_text("\n".join(contract()) + "\n", encoding="utf-8")
