"""Packages: exact, equal for equal input, small in memory, and refused where they are not ours."""

import hashlib
import io
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors

from loramux_adapters import PackageError, pack, read_package
from loramux_adapters.package import digest_of
from loramux_adapters.peft_folder import MAX_CONFIG_BYTES, is_peft_folder
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
    write_folder,
)

INVALID = "INVALID_ADAPTER_CONFIG"
FILE = "INVALID_ADAPTER_FILE"

HALVES = pair("model.layers.0.mlp.q_proj", 3, features=(3, 4), dtype="BF16")
MIXED: Tensors = {
    B: TENSORS[B],
    **{
        name: (dtype, shape, bytes(range(len(raw)))) for name, (dtype, shape, raw) in HALVES.items()
    },
    A: TENSORS[A],
}
"""Tensors of two layers and two dtypes, in no order; by name, those of 4 bytes are not aligned."""
MIXED_CONFIG = CONFIG | {"rank_pattern": {"mlp.q_proj": 3}}


def packed(folder: Path) -> bytes:
    output = io.BytesIO()
    pack(folder, output)
    return output.getvalue()


def test_a_package_has_every_tensor_byte_for_byte(tmp_path: Path) -> None:
    content = packed(write_folder(tmp_path / "adapter", MIXED, MIXED_CONFIG))
    found = {
        name: (tensor["dtype"], tensor["shape"], bytes(tensor["data"]))
        for name, tensor in safetensors.deserialize(content)
    }
    assert found == MIXED


def test_a_package_opens_with_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(packed(write_folder(tmp_path / "adapter")))
    with safetensors.safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(TENSORS)
        assert file.get_tensor(B).tolist() == [[0, 1], [2, 3], [4, 5]]
        assert json.loads(file.metadata()["loramux.manifest"])["peft_config"] == CONFIG
        assert file.metadata()["format"] == "pt"


def test_each_tensor_of_a_package_is_aligned(tmp_path: Path) -> None:
    content = packed(write_folder(tmp_path / "adapter", MIXED, MIXED_CONFIG))
    file = read_package(io.BytesIO(content), len(content)).file
    for tensor in file.tensors.values():
        assert (file.data_start + tensor.offset) % (4 if tensor.dtype == "F32" else 2) == 0


def test_a_package_reads_as_it_was_packed(tmp_path: Path) -> None:
    content = packed(write_folder(tmp_path / "adapter", MIXED, MIXED_CONFIG))
    found = read_package(io.BytesIO(content), len(content))
    assert found.peft_config == MIXED_CONFIG
    assert found.rank == 3
    assert found.target_modules == ["q_proj"]
    assert [(module.module, module.scale) for module in found.modules] == [
        ("model.layers.0.mlp.q_proj", 4 / 3),
        (MODULE, 4 / 2),
    ]


def test_the_order_of_the_stored_tensors_does_not_matter(tmp_path: Path) -> None:
    backwards = {name: MIXED[name] for name in reversed(list(MIXED))}
    one = write_folder(tmp_path / "one", MIXED, MIXED_CONFIG)
    other = write_folder(tmp_path / "other", backwards, MIXED_CONFIG)
    assert packed(one) == packed(other)


def test_the_layout_of_the_config_does_not_matter(tmp_path: Path) -> None:
    config = CONFIG | {"auto_mapping": {"b": [{"c": "\xe9", "d": 1}], "a": None}, "revision": "x"}
    backwards = dict(reversed(config.items())) | {
        "auto_mapping": {"a": None, "b": [{"d": 1, "c": "\xe9"}]}
    }
    texts = [
        json.dumps(config, indent=2, sort_keys=True),
        json.dumps(backwards, separators=(",", ":")),
        "\n\t " + json.dumps(backwards, ensure_ascii=False, indent=1) + "\r\n",
    ]
    folders = [
        write_folder(tmp_path / str(number), config=text) for number, text in enumerate(texts)
    ]
    assert len({packed(folder) for folder in folders}) == 1


def test_metadata_of_the_tensor_file_does_not_matter(tmp_path: Path) -> None:
    plain = write_folder(tmp_path / "plain")
    noted = write_folder(tmp_path / "noted")
    (noted / "adapter_model.safetensors").write_bytes(
        tensor_file(header(metadata={"format": "tf", "loramux.manifest": "old"}), data())
    )
    assert packed(plain) == packed(noted)


def test_packing_keeps_the_order_in_which_patterns_count(tmp_path: Path) -> None:
    # The first pattern that matches counts, and sorting would put MODULE before q_proj.
    patterns = {"q_proj": 2, MODULE: 3}
    folder = write_folder(
        tmp_path / "adapter",
        config=CONFIG | {"r": 4, "rank_pattern": patterns, "alpha_pattern": patterns},
    )
    content = packed(folder)
    (module,) = read_package(io.BytesIO(content), len(content)).modules
    assert (module.rank, module.scale) == (2, 2 / 2)


def test_the_digest_is_the_sha256_of_the_whole_file(tmp_path: Path) -> None:
    content = os.urandom((1 << 20) + 7)
    path = tmp_path / "file"
    path.write_bytes(content)
    with path.open("rb") as file:
        file.seek(99)
        assert digest_of(file) == f"sha256:{hashlib.sha256(content).hexdigest()}"


FOREIGN: list[object] = [None, True, 1.0, "1", [], [1]]
"""Values of other types than those that a manifest has."""


def with_manifest(text: str) -> bytes:
    return tensor_file(header(metadata={"loramux.manifest": text}), data())


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        pytest.param(tensor_file(header(), data()), INVALID, "bare tensor file", id="bare-file"),
        pytest.param(
            tensor_file(header(metadata={"format": "pt"}), data()), INVALID, "PEFT folder",
            id="bare-file-of-PEFT",
        ),
        *(
            pytest.param(with_manifest(manifest(format=value)), INVALID, f"format {value!r};",
                         id=f"format-{value!r}")
            for value in (0, 2, *FOREIGN)
        ),
        *(
            pytest.param(with_manifest(manifest(kind=value)), "UNSUPPORTED_ADAPTER_FEATURE",
                         f"kind {value!r};", id=f"kind-{value!r}")
            for value in ("dora", "LORA", *FOREIGN)
        ),
        *(
            pytest.param(with_manifest(manifest(peft_config=value)), INVALID, "no peft_config",
                         id=f"config-{value!r}")
            for value in FOREIGN
        ),
        *(
            pytest.param(with_manifest(text), INVALID, message, id=id)
            for id, text, message in (
                ("no-JSON", "{", "the manifest is not valid JSON"),
                ("empty", "", "the manifest is not valid JSON"),
                ("a-list", "[]", "the manifest is not a JSON object"),
                ("duplicate-key", manifest().replace("{", '{"format": 1, ', 1), "'format' appears"),
                ("duplicate-field", manifest().replace('"r"', '"r": 2, "r"'), "'r' appears twice"),
                ("NaN", manifest(CONFIG | {"lora_dropout": float("nan")}), "NaN is not JSON"),
                ("1e400", manifest().replace("4", "1e400"), "is 1e400, which is out of range"),
                ("10**400", manifest(CONFIG | {"lora_alpha": 10**400}), "lora_alpha' is 1000"),
                ("surrogate", manifest(CONFIG | {"revision": "\ud800"}), "surrogate"),
            )
        ),
        *(
            # Deeper and deeper, through every limit of the parser's and the writer's stacks.
            pytest.param(
                with_manifest(manifest().replace("4", "[" * depth + "]" * depth)), INVALID,
                "deep", id=f"nested-{depth}-deep",
            )
            for depth in (9, 16, 100, 200, 330, 500, 900, 980, 1000, 20_000)
        ),
        pytest.param(
            with_manifest(manifest(CONFIG | {"revision": "x" * MAX_CONFIG_BYTES})), INVALID,
            "65536 bytes", id="B02-config-above-64-KiB",
        ),
        pytest.param(
            package(config=CONFIG | {"r": 3}), INVALID, "rank 2, but adapter_config.json has 3",
            id="B10-another-rank",
        ),
        pytest.param(
            package(config=CONFIG | {"rank_pattern": {"q_proj": 1}}), INVALID, "config.json has 1",
            id="B10-another-rank-pattern",
        ),
        pytest.param(
            package(config=CONFIG | {"target_modules": ["v_proj"]}), INVALID,
            f"module {MODULE} has tensors", id="tensors-that-are-not-targeted",
        ),
        pytest.param(
            package(config=CONFIG | {"lora_alpha": 2001}), INVALID, "scale 1000.5",
            id="scale-above-1000",
        ),
        pytest.param(
            package(config=CONFIG | {"use_qalora": True}), "UNSUPPORTED_ADAPTER_FEATURE",
            "'use_qalora'", id="unserved-field",
        ),
    ],
)  # fmt: skip
def test_what_is_no_package_of_ours_is_refused(content: bytes, reason: str, message: str) -> None:
    with pytest.raises(PackageError) as caught:
        read_package(io.BytesIO(content), len(content))
    assert caught.value.reason == reason
    assert message in str(caught.value)


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def replace(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


@pytest.mark.timeout(20)  # to open a pipe can be to wait for ever
@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        pytest.param(
            lambda folder: (folder / "adapter_config.json").unlink(), INVALID,
            "no readable adapter_config.json (No such file", id="B01-no-config",
        ),
        pytest.param(
            lambda folder: [
                write_folder(folder / name) for name in ("checkpoint-500", "checkpoint-1000")
            ] + [(folder / "adapter_config.json").unlink()],
            INVALID, "subfolders checkpoint-1000, checkpoint-500 are adapters", id="adapters-in",
        ),
        pytest.param(
            lambda folder: [
                (folder / "adapter_config.json").unlink(), write("config.json", b"{}")(folder),
                write("model.safetensors.index.json", b"{}")(folder),
            ],
            INVALID, "it is a whole model, for --model", id="a-whole-model",
        ),
        pytest.param(
            write("adapter_config.json", b"{" + b" " * MAX_CONFIG_BYTES), INVALID,
            "adapter_config.json is above 65536 bytes", id="B02-config-above-64-KiB",
        ),
        pytest.param(
            # Escaped, as a package holds it, this text is three times as long.
            write("adapter_config.json", json.dumps(
                CONFIG | {"revision": "\xe9" * 20_000}, ensure_ascii=False).encode()),
            INVALID, "above 65536 bytes", id="B02-config-above-64-KiB-once-packed",
        ),
        pytest.param(
            write("adapter_config.json", b"[" * 60_000), INVALID, "deep", id="B03-60000-deep",
        ),
        *(
            pytest.param(write("adapter_config.json", content), INVALID, message, id=id)
            for id, content, message in (
                ("config-not-utf-8", b"\xff", "adapter_config.json is not UTF-8"),
                ("config-not-JSON", b"r: 8", "adapter_config.json is not valid JSON"),
                ("config-a-list", b"[]", "adapter_config.json is not a JSON object"),
                ("duplicate-field", b'{"r": 1, "r": 2}', "'r' appears twice"),
                ("infinite-number", b'{"lora_dropout": 1e400}', "is 1e400, which is out of range"),
            )
        ),
        *(
            pytest.param(
                replace(name, make), reason, f"no readable {name} (not a regular file)",
                id=f"B19-{what}-as-{name.partition('.')[0]}",
            )
            for name, reason in (
                ("adapter_config.json", INVALID), ("adapter_model.safetensors", FILE),
            )
            for what, make in (("a-folder", Path.mkdir), ("a-pipe", os.mkfifo))
        ),
        pytest.param(
            lambda folder: (folder / "adapter_model.safetensors").unlink(), FILE,
            "no readable adapter_model.safetensors (No such file", id="no-tensors",
        ),
        pytest.param(
            lambda folder: (folder / "adapter_model.safetensors").rename(
                folder / "adapter_model.bin"),
            FILE, "adapter_model.bin is a pickle, which can run code: `loramux convert --from-bin ",
            id="a-pickle",
        ),
        pytest.param(
            write("adapter_model.safetensors", tensor_file(header({A: TENSORS[A]}), bytes(32))),
            FILE, f"module {MODULE} has lora_A but no lora_B", id="A-without-B",
        ),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_served_is_not_packed(
    change: Callable[[Path], object], reason: str, message: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "adapter")
    change(folder)
    output = io.BytesIO()
    with pytest.raises(PackageError) as caught:
        pack(folder, output)
    assert caught.value.reason == reason
    assert message in str(caught.value)
    assert output.getvalue() == b""


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(package())
    with pytest.raises(PackageError, match="expected a folder"):
        pack(path, io.BytesIO())


def test_the_largest_config_that_can_be_packed_can_be_read(tmp_path: Path) -> None:
    names = ["q_proj", *(f"m{number}" for number in range(7000))]
    config = CONFIG | {"target_modules": names, "revision": ""}
    left = MAX_CONFIG_BYTES - len(json.dumps(config, separators=(",", ":")))
    text = json.dumps(config | {"revision": "x" * left}, separators=(",", ":"))
    content = packed(write_folder(tmp_path / "fits", config=text))
    assert len(text) == MAX_CONFIG_BYTES
    assert read_package(io.BytesIO(content), len(content)).rank == 2
    with pytest.raises(PackageError, match="above 65536 bytes"):
        packed(write_folder(tmp_path / "does-not", config=text.replace("xx", "xxx", 1)))


WIDE = 1 << 20


def write_wide_folder(folder: Path) -> Path:
    """Write an adapter with 64 MiB of zeros that take no disk."""
    shapes = {A: [8, WIDE], B: [WIDE, 8]}
    end = 8 * WIDE * 4
    entries = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [number * end, (number + 1) * end]}
        for number, (name, shape) in enumerate(shapes.items())
    }
    write_folder(folder, config=CONFIG | {"r": 8})
    path = folder / "adapter_model.safetensors"
    path.write_bytes(tensor_file(entries))
    os.truncate(path, path.stat().st_size + 2 * end)
    return folder


def test_memory_stays_bounded_while_packing(tmp_path: Path) -> None:
    folder = write_wide_folder(tmp_path / "adapter")
    path = tmp_path / "package"
    with path.open("w+b") as output:
        tracemalloc.start()
        try:
            pack(folder, output)
            size = output.tell()
            digest_of(output)
            read_package(output, size)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert size > 64 << 20
    assert peak < 4 << 20


class Shrinking:
    """An output that cuts off the source as soon as something is written."""

    def __init__(self, source: Path, left: int) -> None:
        self._source = source
        self._left = left

    def write(self, piece: bytes, /) -> None:
        os.truncate(self._source, self._left)


def test_a_tensor_file_that_shrinks_while_it_is_packed_is_refused(tmp_path: Path) -> None:
    folder = write_wide_folder(tmp_path / "adapter")
    tensors = folder / "adapter_model.safetensors"
    with pytest.raises(PackageError, match=f"inside tensor {B}: it was changed while"):
        pack(folder, Shrinking(tensors, tensors.stat().st_size - 1))


def test_a_peft_folder_is_known_by_its_config(tmp_path: Path) -> None:
    assert is_peft_folder(write_folder(tmp_path / "adapter"))
    assert not is_peft_folder(tmp_path)
    assert not is_peft_folder(tmp_path / "absent")
