"""Damaged and invented tensor files: what is accepted is what safetensors itself reads."""

import io
import json
import math
import re
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import event, given, settings
from hypothesis import strategies as st

from loramux_adapters import PackageError
from loramux_adapters.tensorfile import ITEM_BYTES, read_header
from tests.adapters.files import data, header, package, tensor_file

Tensors: TypeAlias = dict[str, tuple[str, tuple[int, ...], bytes]]
"""Name -> dtype, shape and bytes."""


def ours(raw: bytes) -> tuple[Tensors, dict[str, str]] | None:
    """Return the tensors and the metadata of the file `raw`; None if it is refused."""
    try:
        file = read_header(io.BytesIO(raw), len(raw))
    except PackageError:
        return None
    tensors = {
        tensor.name: (
            tensor.dtype,
            tensor.shape,
            raw[file.data_start + tensor.offset :][: tensor.num_bytes],
        )
        for tensor in file.tensors.values()
    }
    return tensors, file.metadata


def reference(raw: bytes, path: Path) -> tuple[Tensors, dict[str, str]]:
    """Return what the safetensors library finds in the file `raw`."""
    tensors = {
        name: (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
        for name, tensor in safetensors.deserialize(raw)
    }
    path.write_bytes(raw)
    with safetensors.safe_open(path, framework="numpy") as file:
        return tensors, file.metadata() or {}


def agrees(raw: bytes, path: Path) -> bool:
    """Return whether the file `raw` is accepted, after holding it against the reference."""
    found = ours(raw)
    if found is None:
        return False
    assert found == reference(raw, path), raw
    return True


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path for the file under test."""
    return tmp_path_factory.mktemp("fuzz") / "file.safetensors"


def test_a51_no_beginning_of_a_file_is_a_file() -> None:
    raw = package()
    assert [size for size in range(len(raw)) if ours(raw[:size])] == []


def test_a52_a_flipped_bit_is_refused_or_changes_nothing_unseen(scratch: Path) -> None:
    raw = tensor_file(header(metadata={"format": "pt"}), data())
    end = len(raw) - len(data())
    accepted = 0
    for bit in range(8 * end):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        accepted += agrees(bytes(flipped), scratch)
    assert accepted > 100  # letters of names and metadata, for a start


TOKEN = re.compile(r'"[^"]*"|\d+|[][{},:]')
STRINGS = st.one_of(
    st.text(max_size=6).map(json.dumps),
    st.text(max_size=6).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.sampled_from([
        r'"\ud800"', r'"\udc00\ud800"', r'"\ud83d\ude00"', r'"\u0000"', r'"\/"', r'"\x41"', '"\t"',
        '"a', "null", '"\x7f"', '"F64"', '"t0"', '"__metadata__"',
    ]),
)  # fmt: skip
MARKS = st.sampled_from([
    " ", "\n\t\r ", "\f", "\xa0", "\0", "\ufeff", "//", ",", ":", "[", "]", "{", "}", "", "1",
    '"a"', ',"note":1', ',"dtype":"F32"', ",0", ",1",
])  # fmt: skip


def numbers(usual: str) -> st.SearchStrategy[str]:
    """Return other ways to write a number, and other numbers."""
    return st.sampled_from([
        f"-{usual}", f"{usual}.0", f"{usual}e0", f"0{usual}", f"+{usual}", f'"{usual}"', "true",
        "null", "[]", "\uff11", "NaN", "1e400", str(2**64), "9" * 5000, *map(str, range(10)),
    ])  # fmt: skip


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, tuple[str, list[int], bytes]]:
    """One to three tensors, stored in any order."""
    found = {}
    for index in draw(st.permutations(range(draw(st.sampled_from([1, 1, 2, 3]))))):
        dtype = draw(st.sampled_from(["F32", "F16", "BF16"]))
        shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
        size = math.prod(shape) * ITEM_BYTES[dtype]
        found[f"t{index}"] = (dtype, shape, draw(st.binary(min_size=size, max_size=size)))
    return found


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A file of a few tensors with up to two faults in its header."""
    content = draw(tensors())
    tokens = TOKEN.findall(json.dumps(header(content, {"k": "v"})))
    for _ in range(draw(st.integers(0, 2))):
        kind = draw(st.sampled_from(["number", "string", "mark", "insertion"]))
        places = [
            index
            for index, token in enumerate(tokens)
            if kind in ("insertion", "number" if token.isdigit() else "mark")
            or (kind == "string" and token.startswith('"'))
        ]
        index = draw(st.sampled_from(places))
        if kind == "insertion":
            tokens.insert(index, draw(MARKS))
        else:
            other = {"number": numbers(tokens[index]), "string": STRINGS, "mark": MARKS}[kind]
            tokens[index] = draw(other)
    return tensor_file("".join(tokens).encode(), data(content))


@settings(max_examples=300)
@given(raw=files())
def test_an_invented_file_is_refused_or_read_as_safetensors_reads_it(
    scratch: Path, raw: bytes
) -> None:
    event("accepted" if agrees(raw, scratch) else "refused")


@settings(max_examples=100)
@given(raw=st.binary(max_size=64))
def test_noise_is_refused(scratch: Path, raw: bytes) -> None:
    assert not agrees(raw, scratch)
    assert not agrees(tensor_file(raw), scratch)
    assert not agrees(tensor_file(b"{" + raw + b"}"), scratch)


def test_a_file_that_safetensors_writes_is_accepted(scratch: Path) -> None:
    values: dict[str, np.ndarray[Any, Any]] = {
        "half": np.ones((2, 3), np.float16),
        "single": np.ones(5, np.float32),
    }
    assert agrees(safetensors.numpy.save(values, {"format": "np"}), scratch)
