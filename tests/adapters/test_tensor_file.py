"""Adapter tensor files that must be refused, each for its own reason, and those that must not be.

The ids are those of the corpus of bad inputs: A01 to A53.
"""

import io
import json
import math
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loramux_adapters import Package, PackageError
from loramux_adapters.tensorfile import Limits, TensorInfo, encode_header, read_header
from loramux_server.store.check import check_package
from tests.adapters.files import (
    CONFIG,
    MODULE,
    TENSORS,
    A,
    B,
    Tensors,
    data,
    header,
    manifest,
    package,
    pair,
    tensor_file,
)
from tests.support.bases import ROOMY

BASE = replace(
    ROOMY,
    layers={
        f"model.layers.{layer}.self_attn.{name}": (4, 3)
        for layer in range(2)
        for name in ("q_proj", "v_proj")
    },
)
FILE = "INVALID_ADAPTER_FILE"
ADAPTER_CONFIG = "INVALID_ADAPTER_CONFIG"
UNSUPPORTED = "UNSUPPORTED_ADAPTER_FEATURE"
MISMATCH = "ADAPTER_BASE_MISMATCH"
NOT_FINITE = "ADAPTER_NOT_FINITE"
TOO_LARGE = "ADAPTER_TOO_LARGE"


def check(raw: bytes) -> Package:
    return check_package(io.BytesIO(raw), len(raw), BASE)


def length_only(length: int) -> bytes:
    """Return a file of 64 bytes whose header claims `length`."""
    return struct.pack("<Q", length).ljust(64, b" ")


def edited(edit: Callable[[str], str]) -> bytes:
    """Return a package that is valid but for `edit` of its header's text."""
    text = json.dumps(header(metadata={"loramux.manifest": manifest()}))
    assert edit(text) != text, "the edit found nothing to change"
    return tensor_file(edit(text).encode(), data())


def replaced(old: str, new: str) -> bytes:
    """Return a package whose header's text has `new` where `old` was first."""
    return edited(lambda text: text.replace(old, new, 1))


def followed_by(end: str) -> bytes:
    """Return a package whose header has `end` after the JSON text."""
    return edited(lambda text: text + end)


def with_entry(name: str = A, **changes: Any) -> bytes:
    """Return a package with `changes` in the header entry of one tensor."""
    entries = header(metadata={"loramux.manifest": manifest()})
    entries[name] |= changes
    return tensor_file(entries, data())


def with_metadata(metadata: str) -> bytes:
    """Return a file with the JSON text `metadata` as its metadata."""
    text = json.dumps(header())
    return tensor_file(f'{{"__metadata__": {metadata}, {text[1:]}'.encode(), data())


def named(name: str) -> bytes:
    """Return a package with a tensor that is called `name`."""
    return package({**TENSORS, name: ("F32", [1, 1], bytes(4))})


def of_rank(rank: int, *, declared: int | None = None) -> bytes:
    """Return a package of `rank` whose config says `declared`, or the same."""
    return package(pair(MODULE, rank), CONFIG | {"r": rank if declared is None else declared})


def on(module: str) -> bytes:
    """Return a package that changes `module` alone."""
    return package(pair(module, 2), CONFIG | {"target_modules": [module]})


def ending_with(*values: float, dtype: str = "F32") -> bytes:
    """Return a package whose last tensor ends with `values`."""
    tensors = {
        name: (dtype, shape, encoded([1.0] * math.prod(shape), dtype))
        for name, (_, shape, _) in TENSORS.items()
    }
    _, shape, raw = tensors[B]
    end = encoded(list(values), dtype)
    return package({**tensors, B: (dtype, shape, raw[: -len(end)] + end)})


def encoded(values: list[float], dtype: str) -> bytes:
    """Return the bytes of `values` in `dtype`."""
    if dtype == "BF16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return struct.pack(f"<{len(values)}{'f' if dtype == 'F32' else 'e'}", *values)


def refused(id: str, raw: bytes, reason: str, *message: str) -> Any:
    """Return a case: what the error says about the file `raw`."""
    return pytest.param(raw, reason, message, id=id)


CORPUS = [
    refused("A01-empty", b"", FILE, "0 bytes"),
    refused("A02-shorter-than-the-length", bytes(7), FILE, "7 bytes"),
    refused("A03-header-length-0", length_only(0), FILE, "header length 0 "),
    refused("A04-header-length-max", length_only(2**64 - 1), FILE, str(2**64 - 1)),
    refused("A05-header-length-sign-bit", length_only(2**63), FILE, str(2**63)),
    refused("A06-header-beyond-the-end", length_only(57), FILE, "length 57", "64 bytes"),
    refused(
        "A07-header-above-1-MiB",
        tensor_file(json.dumps(header()).encode().ljust((1 << 20) + 1), data()),
        FILE, str((1 << 20) + 1), str(1 << 20),
    ),
    refused(
        "A09-too-many-tensors", package({str(i): ("F16", [1], bytes(2)) for i in range(4097)}),
        FILE, "4097 tensors", "4096",
    ),
    refused("A10-not-utf-8", tensor_file(b'{"\xff": 1}'), FILE, "not UTF-8"),
    refused("A11-leading-space", edited(lambda text: f" {text}"), FILE, "begin with '{'"),
    refused("A11-an-array", tensor_file(b"[]"), FILE, "begin with '{'"),
    *(
        refused(f"A12-nested-{depth}-deep", with_metadata("[" * depth + "]" * depth), FILE, "deep")
        for depth in (16, 100, 500, 900, 950, 980, 1000, 10_000)
    ),
    refused(
        "A13-duplicate-tensor",
        edited(lambda text: f'{text[:-1]}, "{A}": {json.dumps(header()[A])}}}'),
        FILE, A, "twice",
    ),
    refused(
        "A13-duplicate-field",
        replaced('"dtype"', '"dtype": "F32", "dtype"'),
        FILE, "'dtype'", "twice",
    ),
    refused(
        "A14-duplicate-metadata", edited(lambda text: f'{text[:-1]}, "__metadata__": {{}}}}'),
        FILE, "__metadata__", "twice",
    ),
    refused("A15-metadata-number", with_metadata('{"n": 7}'), FILE, "'n'", "7"),
    refused("A15-metadata-null", with_metadata('{"n": null}'), FILE, "'n'", "None"),
    refused("A15-metadata-object", with_metadata('{"n": {}}'), FILE, "'n'", "{}"),
    refused("A15-metadata-is-a-list", with_metadata("[]"), FILE, "__metadata__"),
    refused(
        "A16-metadata-of-5-MB", with_metadata(json.dumps({"text": "x" * 5_000_000})),
        FILE, "header length 5000", str(1 << 20),
    ),
    *(
        refused(f"A17-{id}-after-the-JSON", followed_by(end), FILE, "JSON")
        for id, end in (("letter", " x"), ("NUL", "\0"), ("second-object", "{}"))
    ),
    *(
        refused(f"A18-{literal}", replaced("[2, 4]", f"[{literal}]"), FILE, literal)
        for literal in ("NaN", "Infinity", "-Infinity", "1e400")
    ),
    *(
        refused(f"A19-shape-{id}", with_entry(shape=[size, 4]), FILE, f"{A}: shape", shown)
        for id, size, shown in (
            ("float", 2.0, "2.0"), ("string", "2", "'2'"), ("boolean", True, "True"),
            ("null", None, "None"),
        )
    ),
    *(
        refused(f"A19-offset-{id}", with_entry(data_offsets=[0, end]), FILE, f"tensor {A}", shown)
        for id, end, shown in (
            ("float", 32.0, "32.0"), ("string", "32", "'32'"),
        )
    ),
    refused("A19-shape-10-to-the-400", with_entry(shape=[10**400, 4]), FILE, f"{A}.shape", "10000"),
    refused(
        "A19-offset-10-to-the-400", with_entry(data_offsets=[0, 10**400]),
        FILE, f"{A}.data_offsets", "10000",
    ),
    refused("A19-minus-zero", replaced("[0, 32]", "[-0, 32]"), FILE, "-0 is not an integer"),
    refused("A19-5000-digits", replaced("[2, 4]", f"[{'7' * 5000}]"), FILE, A, "77777"),
    refused("A19-shape-not-a-list", with_entry(shape=8), FILE, f"{A}: shape", "8"),
    refused("A20-negative-begin", with_entry(data_offsets=[-32, 0]), FILE, A, "[-32, 0]"),
    refused("A21-end-before-begin", with_entry(data_offsets=[32, 0]), FILE, A, "[32, 0]"),
    refused("A21-one-offset", with_entry(data_offsets=[32]), FILE, A, "[32]"),
    refused("A21-three-offsets", with_entry(data_offsets=[0, 32, 64]), FILE, A, "[0, 32, 64]"),
    refused("A22-overlap", with_entry(B, data_offsets=[28, 52]), FILE, B, "28", "overlaps"),
    refused(
        "A22-the-same-bytes", with_entry(B, shape=[4, 2], data_offsets=[0, 32]), FILE, B, "overlaps"
    ),
    refused("A23-hole", with_entry(B, data_offsets=[36, 60]), FILE, B, "36", "gap"),
    refused("A24-first-offset-not-0", with_entry(data_offsets=[4, 36]), FILE, A, "4", "gap"),
    refused(
        "A24-begins-at-10-to-the-4000", with_entry(B, data_offsets=[10**4000, 10**4000 + 24]),
        FILE, B, "10000",
    ),
    refused("A25-bytes-after-the-last", package() + b"PK\3\4", FILE, "56", "60"),
    refused("A25-no-tensors", package({}), FILE, "no tensors"),
    refused("A26-shape-beyond-64-bits", with_entry(shape=[2**32, 2**32]), FILE, A, str(2**66)),
    refused("A26-size-beyond-32-bits", with_entry(shape=[2**33, 1]), FILE, A, str(2**33)),
    refused("A27-too-few-bytes", with_entry(shape=[3, 4]), FILE, A, "48 bytes", "32"),
    refused("A28-too-many-bytes", with_entry(shape=[1, 4]), FILE, A, "16 bytes", "32"),
    refused("A29-no-rows", package({**TENSORS, A: ("F32", [0, 4], b"")}), FILE, A, "[0, 4]"),
    refused("A30-scalar", package({**TENSORS, A: ("F32", [], bytes(4))}), FILE, A, "[]"),
    refused("A30-vector", package({**TENSORS, A: ("F32", [8], bytes(32))}), FILE, A, "(8,)"),
    refused("A31-3-D", with_entry(shape=[2, 2, 2]), FILE, A, "(2, 2, 2)"),
    refused("A31-4-D", with_entry(shape=[2, 2, 2, 1]), FILE, A, "[2, 2, 2, 1]"),
    refused("A31-64-D", with_entry(shape=[8] + [1] * 63), FILE, A, "[8, 1, 1"),
    refused("A32-unknown-dtype", with_entry(dtype="F128"), FILE, A, "'F128'"),
    refused("A32-dtype-a-list", with_entry(dtype=["F32"]), FILE, A, "['F32']"),
    refused("A32-extra-field", with_entry(strides=[4, 1]), FILE, A, "data_offsets"),
    refused("A32-entry-a-list", tensor_file({A: []}), FILE, A, "data_offsets"),
    *(
        refused(f"A33-{dtype}", with_entry(dtype=dtype), FILE, A, repr(dtype))
        for dtype in ("I64", "BOOL", "F64", "U8", "F8_E4M3", "F4", "C64", "f32")
    ),
    *(
        refused(f"A34-NaN-in-{dtype}", ending_with(math.nan, dtype=dtype), NOT_FINITE, B)
        for dtype in ("F32", "F16", "BF16")
    ),
    *(
        refused(
            f"A34-signalling-NaN-in-{dtype}",
            package({**TENSORS, B: (dtype, [3, 2], one.rjust(6 * len(one), b"\0"))}),
            NOT_FINITE, B,
        )
        for dtype, one in (("F32", b"\1\0\x80\x7f"), ("F16", b"\1\x7c"), ("BF16", b"\x81\x7f"))
    ),
    *(
        refused(f"A35-{value}-in-{dtype}", ending_with(value, 0.0, dtype=dtype), NOT_FINITE, B)
        for value in (math.inf, -math.inf) for dtype in ("F32", "F16", "BF16")
    ),
    *(
        refused(f"A36-1e38-in-{dtype}", ending_with(-1e38, dtype=dtype), NOT_FINITE, MODULE, "e+38")
        for dtype in ("F32", "BF16")
    ),
    refused("A40-A-without-B", package({A: TENSORS[A]}), FILE, MODULE, "no lora_B"),
    refused("A40-B-without-A", package({B: TENSORS[B]}), FILE, MODULE, "no lora_A"),
    refused(
        "A41-ranks-disagree", package({**TENSORS, B: ("F32", [2, 3], bytes(24))}), FILE,
        MODULE, "lora_A has rank 2", "lora_B has rank 3",
    ),
    *(
        refused(
            f"A42-{id}", package(pair(MODULE, 2, features=features)), MISMATCH, MODULE,
            f"{features[0]} to {features[1]}", "4 to 3",
        )
        for id, features in (("in-features", (5, 3)), ("out-features", (4, 4)), ("swapped", (3, 4)))
    ),
    *(
        refused(id, on(module), MISMATCH, f"module {module} ")
        for id, module in (
            ("A43-no-such-layer", "model.layers.2.self_attn.q_proj"), ("A44-lm-head", "lm_head"),
            ("A44-norm", "model.norm"), ("A44-embedding-as-linear", "model.embed_tokens"),
        )
    ),
    *(
        refused(id, named(f"base_model.model.{name}"), UNSUPPORTED, f"base_model.model.{name} ")
        for id, name in (
            ("A45-base-weight", f"{MODULE}.weight"),
            ("A45-adapter-name-inside", f"{MODULE}.lora_A.default.weight"),
        )
    ),
    refused("A45-no-prefix", named(f"{MODULE}.lora_A.weight"), FILE, MODULE, "base_model.model."),
    refused("A44-embedding", named("base_model.model.model.embed_tokens.lora_embedding_A"), FILE,
            "module model.embed_tokens has lora_embedding_A but no lora_embedding_B"),
    refused("A45-no-module", named("base_model.model.lora_A.weight"), MISMATCH, "lora_A.weight"),
    refused("A46-rank-0-declared", of_rank(2, declared=0), ADAPTER_CONFIG, "r is 0"),
    refused("A47-rank-513", of_rank(513), ADAPTER_CONFIG, "r is 513", "512"),
    refused("A47-rank-1000000", of_rank(2, declared=10**6), ADAPTER_CONFIG, "r is 1000000"),
    refused("A47-rank-513-hidden", of_rank(513, declared=512), ADAPTER_CONFIG, "513", "512"),
    refused("A47-more-rows-than-there-are", of_rank(65), TOO_LARGE, "rank 65", "64"),
    *(
        refused(f"A48-{id}", named(name), FILE, f"tensor name {shown}")
        for id, name, shown in (
            ("257-bytes", "a" * 257, "'aaaa"), ("empty", "", "''"), ("NUL", "a\0b", r"'a\x00b'"),
            ("newline", "a\n", r"'a\n'"), ("RTL-override", "a\u202eb", r"'a\u202eb'"),
            ("look-alike", "l\u043era", r"'l\u043era'"), ("emoji", "a\U0001f600", r"'a\U0001f600'"),
            ("empty-part", "a..b", "'a..b'"), ("trailing-dot", "a.", "'a.'"),
        )
    ),
    refused("A48-lone-surrogate", named("a\ud800"), FILE, "surrogate"),
    refused("A48-surrogate-in-metadata", with_metadata(r'{"a": "\udfff"}'), FILE, "surrogate"),
    *(
        refused(f"A49-{name}", named(name), FILE, f"tensor name {name!r}")
        for name in ("../x", "/etc/passwd", "a/b", "..")
    ),
    *(
        refused(f"A50-{id}", magic.ljust(64, b"\xa5"), FILE, what)
        for id, what, magic in (
            ("torch-pickle", "a pickle", b"\x80\x02\x8a\nl\xfc"),
            ("pickle-4", "a pickle", b"\x80\x04\x95\x10"), ("zip", "a zip", b"PK\x03\x04"),
            ("GGUF", "a GGUF", b"GGUF\x03\0\0\0"), ("gzip", "a gzip", b"\x1f\x8b\x08"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "reason", "message"), CORPUS)
def test_a_bad_file_is_refused_with_its_reason(
    raw: bytes, reason: str, message: tuple[str, ...]
) -> None:
    with pytest.raises(PackageError) as caught:
        check(raw)
    text = str(caught.value)
    assert caught.value.reason == reason, text
    assert all(part in text for part in message), text
    # It has to fit a status, and may not paint on a terminal.
    assert text.isprintable() and len(text) < 1000


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(package(), id="as-PEFT-writes-it"),
        pytest.param(edited(lambda text: text.ljust(2000)), id="A17-spaces-after-the-JSON"),
        pytest.param(package(pair(MODULE, 2, dtype="F16")), id="float16"),
        pytest.param(package(pair(MODULE, 2, dtype="BF16")), id="bfloat16"),
        pytest.param(package({B: TENSORS[B], A: TENSORS[A]}), id="B-before-A"),
        pytest.param(ending_with(-1e29, 1e-40), id="A36-large-but-safe"),
        pytest.param(ending_with(65504.0, dtype="F16"), id="A36-largest-float16"),
        pytest.param(ending_with(*[1e-40] * 6), id="A38-denormals"),
        pytest.param(package(pair(MODULE, 2)), id="A39-zeros"),
        pytest.param(of_rank(64), id="A47-all-the-rows-there-are"),
        pytest.param(
            with_metadata(json.dumps({"loramux.manifest": manifest(), "\xe9\0": "\U0001f600"})),
            id="A48-any-text-in-metadata",
        ),
    ],
)
def test_a_good_file_is_accepted(raw: bytes) -> None:
    (module,) = check(raw).modules
    assert (module.module, module.in_features, module.out_features) == (MODULE, 4, 3)


def test_a_name_of_256_bytes_is_accepted() -> None:
    name = "a" * 256
    raw = tensor_file(header({name: ("F16", [1], bytes(2))}), bytes(2))
    assert list(read_header(io.BytesIO(raw), len(raw)).tensors) == [name]


def test_4096_tensors_in_a_header_of_1_mib_are_accepted() -> None:
    tensors: Tensors = {str(i): ("F16", [1], bytes(2)) for i in range(4096)}
    raw = tensor_file(json.dumps(header(tensors)).encode().ljust(1 << 20), data(tensors))
    assert len(read_header(io.BytesIO(raw), len(raw)).tensors) == 4096


def test_a08_a_header_of_100_mb_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.write_bytes(struct.pack("<Q", 10**8) + b"{")
    os.truncate(path, 8 + 10**8)
    with path.open("rb") as file:
        with pytest.raises(PackageError, match="100000000 is above the limit"):
            read_header(file, 8 + 10**8)
        assert file.tell() == 8


def test_a53_an_adapter_may_fill_the_host_memory_and_no_more() -> None:
    raw = package(pair(MODULE, 4), CONFIG | {"r": 4})
    size = 4 * 4 * (4 + 3)  # float32, rank, features in and out
    room = replace(BASE, max_host_bytes=size)
    assert check_package(io.BytesIO(raw), len(raw), room).rank == 4
    room = replace(BASE, max_host_bytes=size - 1)
    with pytest.raises(PackageError, match=f"takes {size} bytes .* holds {size - 1};") as caught:
        check_package(io.BytesIO(raw), len(raw), room)
    assert caught.value.reason == TOO_LARGE


@pytest.mark.parametrize("left", [0, 3, 8, 40])
def test_a_file_shorter_than_its_declared_size_is_refused(left: int) -> None:
    raw = package()
    with pytest.raises(PackageError) as caught:
        read_header(io.BytesIO(raw[:left]), len(raw))
    assert caught.value.reason == FILE


def test_a_header_is_written_up_to_what_is_read() -> None:
    tensor = TensorInfo(A, "F32", (2, 4), 0, 32)
    whole = encode_header([tensor], {"note": "x" * 100})
    limits = Limits(len(whole) - 8, 1)
    assert encode_header([tensor], {"note": "x" * 100}, limits=limits) == whole
    with pytest.raises(PackageError, match=f"the limit is {len(whole) - 8}"):
        encode_header([tensor], {"note": "x" * 108}, limits=limits)
    with pytest.raises(PackageError, match="2 tensors are more than the limit of 1"):
        encode_header([tensor, replace(tensor, name=B)], {}, limits=limits)


def test_the_shortest_header_is_one() -> None:
    with pytest.raises(PackageError, match="the file holds no tensors"):
        read_header(io.BytesIO(struct.pack("<Q", 2) + b"{}"), 10)
