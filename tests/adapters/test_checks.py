"""`verify`, `lint` and `diff`: what they find, and what they leave alone."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramux_adapters import open_package, pack
from loramux_adapters.digests import tensor_digest
from loramux_adapters.package import digest_of
from loramux_adapters.tensorfile import tensor_reader
from loramux_adapters.weights.lint import CODES, lint
from tests.adapters.files import CONFIG, TENSORS, Tensors, write_folder
from tests.adapters.weights import SOUND, Q, V, random_pair
from tests.support.command_line import Loramux


def codes(tmp_path: Path, tensors: Tensors, config: dict[str, Any] | None = None) -> list[str]:
    folder = write_folder(tmp_path / f"a{len(list(tmp_path.iterdir()))}", tensors, config or SOUND)
    with open_package(folder) as (file, package):
        return [finding.code for finding in lint(file, package)]


def test_a_sound_adapter_has_no_findings(tmp_path: Path) -> None:
    assert codes(tmp_path, {**random_pair(), **random_pair(V, 1)}) == []


ZERO = np.zeros((6, 4))
HALF = np.random.default_rng(3).normal(size=(6, 4)).astype(np.float16)
LOW = np.outer(np.arange(1, 7), np.eye(5)[0])
LOW[:4, 1:] = 1e-3 * np.eye(4)


@pytest.mark.parametrize(
    ("tensors", "config", "expected"),
    [
        (random_pair(b=np.full((6, 4), np.nan)), {}, ["not-finite"]),
        (random_pair(a=np.full((4, 8), -np.inf)), {}, ["not-finite"]),
        (random_pair(b=ZERO), {}, ["dead-adapter"]),
        ({**random_pair(), **random_pair(V, b=ZERO)}, {}, ["dead-module"]),
        ({**random_pair(), **random_pair(V, a=np.zeros((4, 8)))}, {}, ["dead-module"]),
        (random_pair(), {"lora_alpha": 64}, []),
        (random_pair(), {"lora_alpha": 65}, ["scale-high"]),
        (random_pair(), {"lora_alpha": 0.25}, []),
        (random_pair(), {"lora_alpha": 0.2}, ["scale-low"]),
        (random_pair(rank=64), {"r": 64, "lora_alpha": 7}, ["rank-without-rslora", "rank-unused"]),
        (random_pair(rank=64), {"r": 64, "lora_alpha": 7, "use_rslora": True}, ["rank-unused"]),
        (random_pair(), {"base_model_name_or_path": None}, ["base-unknown"]),
        (
            {
                **random_pair(),
                **random_pair(V, 1),
                **random_pair("model.layers.2.q_proj", b=50 * HALF),
            },
            {},
            ["norm-outlier"],
        ),
        (random_pair(b=LOW, rank=5), {"r": 5}, ["rank-unused"]),
        (random_pair(a=np.eye(4, 8), b=HALF), {}, ["wide-dtype"]),
        (random_pair(a=np.eye(4, 8), b=(HALF * 4).round()), {}, ["wide-dtype"]),
        (random_pair(a=np.eye(4, 8)), {}, []),
    ],
)
def test_a_smell_has_its_code(
    tensors: Tensors, config: dict[str, Any], expected: list[str], tmp_path: Path
) -> None:
    assert codes(tmp_path, tensors, SOUND | config) == expected


def test_a_wide_dtype_names_one_that_is_enough(tmp_path: Path) -> None:
    for values, dtype in ((HALF, "float16"), ((HALF * 4).round(), "bfloat16")):
        folder = write_folder(tmp_path / dtype, random_pair(a=np.eye(4, 8), b=values), SOUND)
        with open_package(folder) as (file, package):
            (finding,) = lint(file, package)
        assert finding.message.endswith(f"see convert --dtype {dtype}")


def test_scales_of_conversions_are_no_smells(tmp_path: Path, loramux: Loramux) -> None:
    low = np.zeros((6, 32))
    low[:, 0] = 1
    config = SOUND | {"r": 32, "lora_alpha": 32}
    write_folder(
        tmp_path / "a",
        {**random_pair(rank=32, a=np.eye(32, 40)[:, :8]), **random_pair(V, rank=32, b=low)},
        config,
    )
    loramux("convert", "a", "-o", "low", "--energy", "0.9999")
    with open_package(Path("low")) as (file, package):
        assert sorted(module.scale for module in package.modules) == [1, 6]
        assert "scale-high" not in {finding.code for finding in lint(file, package)}


def test_dtypes_that_differ_are_noted(tmp_path: Path) -> None:
    first, second = random_pair().items()
    half = np.frombuffer(second[1][2], "<f4").astype("<f2").tobytes()
    tensors = {first[0]: first[1], second[0]: ("F16", second[1][1], half)}
    assert codes(tmp_path, tensors) == ["mixed-dtypes"]


def test_every_code_is_tested_and_in_the_help(loramux: Loramux) -> None:
    text = Path(__file__).read_text()
    assert [code for code in CODES if f'"{code}"' not in text] == []
    shown = "".join(loramux("lint", "--help").output.split())  # lines break inside codes
    assert [code for code in CODES if code not in shown] == []


@pytest.mark.parametrize(
    ("tensors", "config", "plain", "strict"),
    [
        (random_pair(), {}, 0, 0),
        (random_pair(), {"lora_alpha": 65}, 0, 1),
        (random_pair(b=ZERO), {}, 1, 1),
    ],
)
def test_lint_exits_by_what_it_finds(
    tensors: Tensors, config: dict[str, Any], plain: int, strict: int, loramux: Loramux,
    tmp_path: Path,
) -> None:  # fmt: skip
    write_folder(tmp_path / "a", tensors, SOUND | config)
    assert loramux("lint", "a").code == plain
    assert loramux("lint", "a", "--strict").code == strict
    done = loramux("lint", "a", "--json")
    assert (done.code, done.errors) == (plain, "")
    assert all(finding.keys() == {"level", "code", "message", "module"}
               for finding in json.loads(done.output))  # fmt: skip


def noted(folder: Path) -> Path:
    """Add the digests of the tensors of the PEFT `folder` to its notes."""
    with open_package(folder) as (file, package):
        read = tensor_reader(file, package.file.data_start)
        digests = {name: tensor_digest(each, read) for name, each in package.file.tensors.items()}
    (folder / "loramux.json").write_text(json.dumps({"tensors": digests}))
    return folder


def test_verify_says_what_it_checked(loramux: Loramux, tmp_path: Path) -> None:
    noted(write_folder(tmp_path / "a"))
    digest = loramux("pack", "a", "-o", "package").output.split()[1]
    done = loramux("verify", "package", "--json", "--digest", digest)
    assert json.loads(done.output) == {
        "structure": "1 modules, 2 tensors",
        "digest": digest,
        "tensor digests": "all 2 match the manifest",
        "finite": "all 2 tensors",
    }


def test_verify_finds_a_flipped_bit_in_any_tensor_byte(tmp_path: Path, loramux: Loramux) -> None:
    noted(write_folder(tmp_path / "a"))
    loramux("pack", "a", "-o", "package")
    content = Path("package").read_bytes()
    for place in range(len(content) - 56, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 1
        Path("flipped").write_bytes(flipped)
        done = loramux("verify", "flipped")
        assert (done.code, done.output) == (1, "")
        assert "the tensor was changed after packing" in done.errors


@pytest.mark.parametrize(
    ("tensors", "arguments", "message"),
    [
        (TENSORS, ["--digest", "sha256:00"], "the package has digest sha256:"),
        (TENSORS, ["--base", "absent"], "base model: absent/config.json cannot be read"),
        (
            random_pair(b=np.full((6, 4), np.inf)),
            [],
            f"tensor base_model.model.{Q}.lora_B.weight: a weight is NaN or infinite",
        ),
    ],
)
def test_verify_fails_in_one_line(
    tensors: Tensors, arguments: list[str], message: str, loramux: Loramux, tmp_path: Path
) -> None:
    write_folder(tmp_path / "a", tensors, CONFIG if tensors is TENSORS else SOUND)
    done = loramux("verify", "a", *arguments)
    assert (done.code, done.output, done.errors.count("\n")) == (1, "", 1)
    assert message in done.errors


def test_packing_with_digests_is_reproducible(tmp_path: Path) -> None:
    folder = noted(write_folder(tmp_path / "a"))
    outputs = [io.BytesIO(), io.BytesIO()]
    for output in outputs:
        pack(folder, output)
    assert digest_of(outputs[0]) == digest_of(outputs[1])
