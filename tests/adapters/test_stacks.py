"""Factors of many experts lie in stacks, and what was saved is found again in them."""

import io
import json
import random
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_adapters import Package, PackageError, pack, read_package, unpack
from loramux_adapters.experts import ExpertsShape
from loramux_adapters.stacks import MAX_PARTS, stacked, unstacked
from loramux_adapters.tensorfile import FOLDER, PACKAGE, TensorInfo, read_header, tensor_reader
from loramux_server.store.check import check_package
from tests.adapters.files import CONFIG, Tensors, package, pair, write_folder
from tests.support.bases import ROOMY
from tests.support.command_line import Loramux, Result

LAYERS, EXPERTS = 6, 128
PROJECTIONS = {"gate_proj": (4, 3), "up_proj": (4, 3), "down_proj": (3, 4)}
LARGE: dict[str, Any] = CONFIG | {"r": 1, "target_modules": ["q_proj", *PROJECTIONS]}
AT = "model.layers.0.mlp.experts"
STACK_A = f"base_model.model.{AT}.0-2.up_proj.lora_A.weight"
STACK_B = STACK_A.replace("lora_A", "lora_B")


def named(numbers: str) -> str:
    """Return the name of the stack of some experts."""
    return STACK_A.replace("0-2", numbers)


def filled(tensors: Tensors) -> Tensors:
    """Return `tensors` with other numbers in each."""
    rng = random.Random(0)
    return {
        name: (dtype, shape, struct.pack(f"<{len(raw) // 2}e", *(
            rng.uniform(-1, 1) for _ in range(len(raw) // 2)
        )))
        for name, (dtype, shape, raw) in tensors.items()
    }  # fmt: skip


def mixture(layers: int = LAYERS, experts: int = EXPERTS, *, without: int = -1) -> Tensors:
    """Return the factors of all experts but `without`, and of one more layer."""
    tensors = dict(pair("model.layers.0.self_attn.q_proj", 1, dtype="F16"))
    for layer in range(layers):
        for expert in range(experts):
            for name, features in PROJECTIONS.items():
                at = f"model.layers.{layer}.mlp.experts.{expert}.{name}"
                tensors |= pair(at, 1, features=features, dtype="F16") if expert != without else {}
    return filled(tensors)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEFT folder with more tensors than a package may have."""
    return write_folder(tmp_path_factory.mktemp("stacks") / "large", mixture(), LARGE)


def packed(folder: Path, **notes: object) -> bytes:
    output = io.BytesIO()
    pack(folder, output, notes=notes)
    return output.getvalue()


def opened(content: bytes) -> tuple[io.BytesIO, Package]:
    file = io.BytesIO(content)
    return file, read_package(file, len(content))


def saved(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return all that PEFT finds in `folder`."""
    with (folder / "adapter_model.safetensors").open("rb") as file:
        size = (folder / "adapter_model.safetensors").stat().st_size
        header = read_header(file, size, limits=FOLDER)
        read = tensor_reader(file, header.data_start)
        return {n: (t.dtype, t.shape, b"".join(read(t))) for n, t in header.tensors.items()}


def test_a_large_mixture_is_a_package_of_few_tensors_and_a_folder_again(
    large: Path, tmp_path: Path
) -> None:
    content = packed(large)
    file, read = opened(content)
    assert len(read.tensors) == LAYERS * EXPERTS * 3 * 2 + 2 > PACKAGE.num_tensors
    assert len(read.file.tensors) == LAYERS * 3 * 2 + 2
    stack = read.file.tensors[f"base_model.model.{AT}.0-127.up_proj.lora_A.weight"]
    assert stack.shape == (128, 1, 4)
    unpack(file, read, tmp_path / "again")
    assert saved(tmp_path / "again") == saved(large)
    assert packed(large) == packed(tmp_path / "again") == content


def test_a_server_takes_it(large: Path) -> None:
    file, _ = opened(packed(large))
    experts = {f"model.layers.{i}.mlp.experts": ExpertsShape(EXPERTS, 4, 3) for i in range(LAYERS)}
    base = replace(ROOMY, layers={"model.layers.0.self_attn.q_proj": (4, 3)}, experts=experts)
    found = check_package(file, len(file.getvalue()), base).contents
    assert len(found.experts) == LAYERS * EXPERTS * 3 and len(found.modules) == 1
    few = experts | {AT: ExpertsShape(EXPERTS - 1, 4, 3)}
    with pytest.raises(PackageError, match=r"experts\.127\.\w+: the base .* from 0 to 126"):
        check_package(file, len(file.getvalue()), replace(base, experts=few))


def test_an_expert_without_factors_is_no_part_of_a_stack(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", mixture(without=7), LARGE)
    file, read = opened(packed(folder))
    names = [name for name in read.file.tensors if ".experts." in name]
    assert len(names) == LAYERS * 3 * 2 and all(".experts.0-6_8-127." in name for name in names)
    unpack(file, read, tmp_path / "again")
    assert saved(tmp_path / "again") == saved(folder)


def test_factors_of_another_rank_or_dtype_stay_alone(tmp_path: Path) -> None:
    tensors = dict(mixture())
    for layer in range(LAYERS):
        at = f"model.layers.{layer}.mlp.experts.3.up_proj"
        tensors |= pair(at, 2, features=PROJECTIONS["up_proj"], dtype="F16")
    tensors |= pair(f"{AT}.5.up_proj", 1, features=PROJECTIONS["up_proj"])
    config = LARGE | {"rank_pattern": {"experts.3.up_proj": 2}}
    folder = write_folder(tmp_path / "folder", tensors, config)
    file, read = opened(packed(folder))
    assert {named(numbers) for numbers in ("3", "5", "0-2_4_6-127")} < read.file.tensors.keys()
    unpack(file, read, tmp_path / "again")
    assert saved(tmp_path / "again") == saved(folder)


def test_what_has_room_without_stacks_is_stored_without(tmp_path: Path) -> None:
    tensors = mixture(layers=5)
    folder = write_folder(tmp_path / "folder", tensors, LARGE)
    assert opened(packed(folder))[1].file.tensors.keys() == tensors.keys()
    # With notes there are digests of the tensors, too, and no room for those of each.
    file, read = opened(packed(folder, licence="MIT"))
    assert len(read.file.tensors) == 5 * 3 * 2 + 2
    unpack(file, read, tmp_path / "again")
    assert packed(tmp_path / "again") == file.getvalue()


def test_more_than_stacks_make_few_is_refused(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {}
    for layer in range(2050):
        tensors |= pair(f"model.layers.{layer}.self_attn.q_proj", 1)
    folder = write_folder(tmp_path / "folder", tensors, LARGE)
    with pytest.raises(PackageError, match="4100 tensors are more than the limit of 4096"):
        packed(folder)


def test_the_command_line_knows_stacks(loramux: Loramux, large: Path) -> None:
    assert loramux("sign", "--new-key", "key").code == 0
    for done in (
        loramux("pack", str(large), "-o", "plain"),
        loramux("sign", "plain", "--key", "key", "-o", "signed"),
        loramux("unpack", "signed", "-o", "folder"),
        loramux("pack", "folder", "-o", "again"),
        loramux("convert", "signed", "-o", "wide", "--dtype", "float32"),
    ):
        assert done.code == 0, done
    assert Path("again").read_bytes() == Path("signed").read_bytes()
    done = loramux("verify", "again", "--key", "key.pub", "--json")
    assert done.code == 0
    assert json.loads(done.output)["structure"] == "2305 modules, 4610 tensors in 38"
    shown = json.loads(loramux("inspect", "wide", "--json").output)
    assert {row["target"]: row["layers"] for row in shown["targets"]} == {
        "q_proj": 1, **dict.fromkeys(PROJECTIONS, LAYERS * EXPERTS)
    }  # fmt: skip
    _, wide = opened(Path("wide").read_bytes())
    assert {tensor.dtype for tensor in wide.file.tensors.values()} == {"F32"}
    assert len(wide.file.tensors) == 38 and len(wide.notes["tensors"]) == 38  # type: ignore[arg-type]


def test_a_bad_number_is_reported_with_its_expert(loramux: Loramux) -> None:
    tensors = {
        STACK_A: ("F32", [3, 1, 4], struct.pack("<12f", *range(11), float("nan"))),
        STACK_B: ("F32", [3, 3, 1], bytes(36)),
    }
    Path("bad").write_bytes(package(tensors, LARGE))
    message = f"tensor base_model.model.{AT}.2.up_proj.lora_A.weight: a weight is NaN or infinite"
    assert loramux("verify", "bad") == Result(1, "", f"loramux: {message}\n")


def of_shapes(shapes: Mapping[str, list[int]]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, "F16", tuple(shape), 0, 0) for name, shape in shapes.items()}


@pytest.mark.parametrize(("shapes", "message"), [
    ({STACK_A: [2, 1, 4]}, r"0-2\.up_proj\.lora_A\.weight: shape \(2, 1, 4\) has 2 experts, "
     "but the name has 3"),
    ({STACK_A: [4, 1, 4]}, "has 4 experts, but the name has 3"),
    ({STACK_A: [3, 4]}, r"shape \(3, 4\) is not 3-D, as a stack requires"),
    ({named("0-2_4"): [3, 1, 4]}, "has 3 experts, but the name has 4"),
    ({named("2-0"): [3, 1, 4]}, "2-0 are not experts in ascending order, such as 0-5_7"),
    ({named("0-0"): [1, 1, 4]}, "0-0 are not experts"),
    ({named("0_0"): [2, 1, 4]}, "0_0 are not experts"),
    ({named("1-3_3"): [4, 1, 4]}, "1-3_3 are not experts"),
    ({named("01-3"): [3, 1, 4]}, "01-3 are not experts"),
    ({named("0-1-2"): [3, 1, 4]}, "0-1-2 are not experts"),
    ({named("0-1000000000"): [3, 1, 4]}, "0-1000000000 are not experts"),
    ({named("0-999999999"): [3, 1, 4]}, f"parts up to here; the limit is {MAX_PARTS}"),
    ({STACK_A: [3, 1, 4], STACK_B: [3, 3, 1], named(f"9-{MAX_PARTS + 3}"): [MAX_PARTS - 5, 1, 4]},
     f"the stacks have {MAX_PARTS + 1} parts up to here"),
    ({STACK_A: [3, 1, 4], named("1"): [1, 4]}, r"\.1\.up_proj\.lora_A\.weight occurs twice"),
    ({named("1"): [1, 4], STACK_A: [3, 1, 4]}, r"\.1\.up_proj\.lora_A\.weight occurs twice"),
    ({STACK_A: [3, 1, 4], named("2_4"): [2, 1, 4]}, r"\.2\.up_proj\.lora_A\.weight occurs twice"),
])  # fmt: skip
def test_a_stack_is_what_its_name_says(shapes: dict[str, list[int]], message: str) -> None:
    with pytest.raises(PackageError, match=message) as caught:
        unstacked(of_shapes(shapes))
    assert caught.value.reason == "INVALID_ADAPTER_FILE"


@pytest.mark.parametrize(("a", "b", "message"), [
    ([3, 2, 4], [3, 3, 2], rf"{AT}\.0\.up_proj: the tensors have rank 2, .* has 1"),
    ([3, 1, 4], [3, 3, 2], rf"{AT}\.0\.up_proj: lora_A has rank 1, lora_B has rank 2"),
    ([3, 1, 4], [2, 3, 1], "has 2 experts, but the name has 3"),
])  # fmt: skip
def test_parts_fit_each_other_and_the_config(a: list[int], b: list[int], message: str) -> None:
    tensors = {
        name: ("F16", shape, bytes(2 * shape[0] * shape[1] * shape[2]))
        for name, shape in ((STACK_A, a), (STACK_B, b))
    }
    with pytest.raises(PackageError, match=message):
        opened(package(tensors, LARGE))


def test_a_half_of_an_expert_that_is_in_no_other_stack_is_missed() -> None:
    tensors = {
        STACK_A: ("F16", [3, 1, 4], bytes(24)),
        STACK_B.replace("0-2", "0-1"): ("F16", [2, 3, 1], bytes(12)),
    }
    with pytest.raises(PackageError, match=rf"module {AT}\.2\.up_proj has lora_A but no lora_B"):
        opened(package(tensors, LARGE))


SHAPES = st.sampled_from([("F16", (1, 4)), ("F16", (2, 4)), ("F32", (1, 4))])


@given(st.dictionaries(st.integers(0, 300), SHAPES, min_size=1, max_size=200))
def test_any_experts_are_found_again(experts: dict[int, tuple[str, tuple[int, int]]]) -> None:
    size = {"F16": 2, "F32": 4}
    tensors = {}
    for number, (dtype, shape) in experts.items():
        name = named(str(number))
        tensors[name] = TensorInfo(name, dtype, shape, 0, shape[0] * shape[1] * size[dtype])
    form = stacked(tensors)
    end, placed = 0, {}
    for name, tensor in form.tensors.items():
        placed[name] = replace(tensor, offset=end)
        end += tensor.num_bytes
    found = unstacked(placed)
    assert {name: replace(tensor, offset=0) for name, tensor in found.items()} == tensors
    read = form.reader(lambda tensor: [tensor.name.encode()])
    by_place = [part.name for part in sorted(found.values(), key=lambda part: part.offset)]
    assert b"".join(b"".join(read(t)) for t in form.tensors.values()) == "".join(by_place).encode()
    assert all(len(name) <= 256 for name in form.tensors)


def test_the_header_of_a_folder_is_bounded() -> None:
    for text, message in (
        ("[]," * 1_500_000, "has 3000001 values, too many for 98304 tensors"),
        (" " * FOLDER.num_bytes, f"above the limit of {FOLDER.num_bytes} bytes"),
    ):
        raw = f'{{"a":[{text.removesuffix(",")}]}}'.encode()
        file = io.BytesIO(struct.pack("<Q", len(raw)) + raw)
        with pytest.raises(PackageError, match=message):
            read_header(file, 8 + len(raw), limits=FOLDER)
