"""The generated code is that of the protos, and every element of the protos is described."""

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

protoc = pytest.importorskip("grpc_tools.protoc")

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos"
GENERATED = ("client/loramux/v1", "server/loramux_server/inference")
PLUGIN = "protoc-gen-mypy"


@pytest.mark.skipif(
    not (shutil.which(PLUGIN) or Path(sys.executable).with_name(PLUGIN).exists()),
    reason="mypy-protobuf is not installed",
)
def test_the_generated_code_is_that_of_the_protos(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("generate", PROTOS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.generate(tmp_path)
    for folder in GENERATED:
        made = contents(tmp_path / folder)
        assert made
        assert contents(ROOT / folder) == made


def contents(folder: Path) -> dict[str, str]:
    """Return the text of each generated file in `folder`."""
    return {path.name: path.read_text() for path in folder.iterdir() if "_pb2" in path.name}


Place = tuple[int, ...]
"""Where an element is in its file, as protoc counts."""


def elements_of_enum(enum: EnumDescriptorProto, path: Place) -> Iterator[tuple[str, Place]]:
    yield enum.name, path
    for index, value in enumerate(enum.value):
        yield value.name, (*path, EnumDescriptorProto.VALUE_FIELD_NUMBER, index)


def elements_of_message(message: DescriptorProto, path: Place) -> Iterator[tuple[str, Place]]:
    yield message.name, path
    for index, field in enumerate(message.field):
        yield field.name, (*path, DescriptorProto.FIELD_FIELD_NUMBER, index)
    # An optional field is a choice of its own to protoc; the name is its mark.
    for index, choice in enumerate(message.oneof_decl):
        if not choice.name.startswith("_"):
            yield choice.name, (*path, DescriptorProto.ONEOF_DECL_FIELD_NUMBER, index)
    for index, enum in enumerate(message.enum_type):
        yield from elements_of_enum(enum, (*path, DescriptorProto.ENUM_TYPE_FIELD_NUMBER, index))
    for index, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from elements_of_message(
                nested, (*path, DescriptorProto.NESTED_TYPE_FIELD_NUMBER, index)
            )


def elements(file: FileDescriptorProto) -> Iterator[tuple[str, Place]]:
    """Yield the name and place of everything that `file` declares."""
    for index, message in enumerate(file.message_type):
        yield from elements_of_message(
            message, (FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER, index)
        )
    for index, enum in enumerate(file.enum_type):
        yield from elements_of_enum(enum, (FileDescriptorProto.ENUM_TYPE_FIELD_NUMBER, index))
    for index, service in enumerate(file.service):
        path = (FileDescriptorProto.SERVICE_FIELD_NUMBER, index)
        yield service.name, path
        for number, method in enumerate(service.method):
            yield method.name, (*path, ServiceDescriptorProto.METHOD_FIELD_NUMBER, number)


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """Each element of the protos, as file:name, and the comment before it."""
    output = tmp_path_factory.mktemp("protos") / "descriptors"
    protos = sorted(PROTOS.glob("**/*.proto"))
    failed = protoc.main([
        "protoc",
        f"--proto_path={PROTOS}",
        f"--proto_path={Path(protoc.__file__).parent / '_proto'}",
        f"--descriptor_set_out={output}",
        "--include_source_info",
        *map(str, protos),
    ])  # fmt: skip
    assert not failed
    found = []
    files = FileDescriptorSet.FromString(output.read_bytes()).file
    assert len(files) == len(protos)
    for file in files:
        comments = {
            tuple(place.path): place.leading_comments for place in file.source_code_info.location
        }
        found += [(f"{file.name}:{name}", comments[path]) for name, path in elements(file)]
    return found


def test_every_element_has_a_comment_that_starts_with_its_name(
    described: list[tuple[str, str]],
) -> None:
    assert len(described) > 100
    wrong = [
        element
        for element, comment in described
        if not comment.strip().startswith(f"{element.rpartition(':')[2]} ")
    ]
    assert wrong == []


def test_every_comment_is_a_sentence(described: list[tuple[str, str]]) -> None:
    wrong = [element for element, comment in described if not comment.strip().endswith(".")]
    assert wrong == []
