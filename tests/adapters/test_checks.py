"""`verify`, `lint` and `diff`: what they find, and what they leave alone."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramux_adapters import open_package, pack
from loramux_adapters.digests import tensor_digest
from loramux_adapters.package import digest_of, tensor_reader
from loramux_adapters.weights.diff import diff
from loramux_adapters.weights.lint import CODES, lint
from tests.adapters.files import CONFIG, TENSORS, Tensors, write_folder
from tests.support.command_line import Loramux

SOUND = CONFIG | {"base_model_name_or_path": "org/base", "r": 4, "lora_alpha": 8}
Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"


def weights(module: str = Q, seed: int = 0, rank: int = 4, **halves: Any) -> Tensors:
    """Return random A and B of `module`, with `a` or `b` in their place if given."""
    random = np.random.default_rng(seed)
    made = {"A": random.normal(size=(rank, 8)), "B": random.normal(size=(6, rank))}
    made |= {half.upper(): array for half, array in halves.items()}
    return {
        f"base_model.model.{module}.lora_{half}.weight": (
            "F32", list(array.shape), np.asarray(array, "<f4").tobytes(),
        )
        for half, array in made.items()
    }  # fmt: skip


def codes(tmp_path: Path, tensors: Tensors, config: dict[str, Any] | None = None) -> list[str]:
    folder = write_folder(tmp_path / f"a{len(list(tmp_path.iterdir()))}", tensors, config or SOUND)
    with open_package(folder) as (file, package):
        return [finding.code for finding in lint(file, package)]


def test_a_sound_adapter_has_no_findings(tmp_path: Path) -> None:
    assert codes(tmp_path, {**weights(), **weights(V, 1)}) == []


ZERO = np.zeros((6, 4))
HALF = np.random.default_rng(3).normal(size=(6, 4)).astype(np.float16)
LOW = np.outer(np.arange(1, 7), np.eye(5)[0])
LOW[:4, 1:] = 1e-3 * np.eye(4)


@pytest.mark.parametrize(
    ("tensors", "config", "expected"),
    [
        (weights(b=np.full((6, 4), np.nan)), {}, ["not-finite"]),
        (weights(a=np.full((4, 8), -np.inf)), {}, ["not-finite"]),
        (weights(b=ZERO), {}, ["dead-adapter"]),
        ({**weights(), **weights(V, b=ZERO)}, {}, ["dead-module"]),
        ({**weights(), **weights(V, a=np.zeros((4, 8)))}, {}, ["dead-module"]),
        (weights(), {"lora_alpha": 64}, []),
        (weights(), {"lora_alpha": 65}, ["scale-high"]),
        (weights(), {"lora_alpha": 0.25}, []),
        (weights(), {"lora_alpha": 0.2}, ["scale-low"]),
        (weights(rank=64), {"r": 64, "lora_alpha": 7}, ["rank-without-rslora", "rank-unused"]),
        (weights(rank=64), {"r": 64, "lora_alpha": 7, "use_rslora": True}, ["rank-unused"]),
        (weights(), {"base_model_name_or_path": None}, ["base-unknown"]),
        (
            {**weights(), **weights(V, 1), **weights("model.layers.2.q_proj", b=50 * HALF)},
            {},
            ["norm-outlier"],
        ),
        (weights(b=LOW, rank=5), {"r": 5}, ["rank-unused"]),
        (weights(a=np.eye(4, 8), b=HALF), {}, ["wide-dtype"]),
        (weights(a=np.eye(4, 8), b=(HALF * 4).round()), {}, ["wide-dtype"]),
        (weights(a=np.eye(4, 8)), {}, []),
    ],
)
def test_a_smell_has_its_code(
    tensors: Tensors, config: dict[str, Any], expected: list[str], tmp_path: Path
) -> None:
    assert codes(tmp_path, tensors, SOUND | config) == expected


def test_a_wide_dtype_names_one_that_is_enough(tmp_path: Path) -> None:
    for values, dtype in ((HALF, "float16"), ((HALF * 4).round(), "bfloat16")):
        folder = write_folder(tmp_path / dtype, weights(a=np.eye(4, 8), b=values), SOUND)
        with open_package(folder) as (file, package):
            (finding,) = lint(file, package)
        assert finding.message.endswith(f"see convert --dtype {dtype}")


def test_dtypes_that_differ_are_noted(tmp_path: Path) -> None:
    first, second = weights().items()
    half = np.frombuffer(second[1][2], "<f4").astype("<f2").tobytes()
    tensors = {first[0]: first[1], second[0]: ("F16", second[1][1], half)}
    assert codes(tmp_path, tensors) == ["mixed-dtypes"]


def test_every_code_is_tested() -> None:
    text = Path(__file__).read_text()
    assert [code for code in CODES if f'"{code}"' not in text] == []


@pytest.mark.parametrize(
    ("tensors", "config", "plain", "strict"),
    [
        (weights(), {}, 0, 0),
        (weights(), {"lora_alpha": 65}, 0, 1),
        (weights(b=ZERO), {}, 1, 1),
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
        "tensor digests": "all 2 as in the manifest",
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
        assert "it is not the tensor that was packed" in done.errors


@pytest.mark.parametrize(
    ("tensors", "arguments", "message"),
    [
        (TENSORS, ["--digest", "sha256:00"], "the package has digest sha256:"),
        (TENSORS, ["--base", "absent"], "base model: absent/config.json cannot be read"),
        (weights(b=np.full((6, 4), np.inf)), [], f"module {Q}: a weight is NaN or infinite"),
    ],
)
def test_verify_fails_in_one_line(
    tensors: Tensors, arguments: list[str], message: str, loramux: Loramux, tmp_path: Path
) -> None:
    write_folder(tmp_path / "a", tensors, CONFIG if tensors is TENSORS else SOUND)
    done = loramux("verify", "a", *arguments)
    assert (done.code, done.output, done.errors.count("\n")) == (1, "", 1)
    assert message in done.errors


@settings(max_examples=30, deadline=None)
@given(
    seeds=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    ranks=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    alphas=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_a_difference_is_that_of_the_products(
    seeds: tuple[int, int], ranks: tuple[int, int], alphas: tuple[int, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    place = tmp_path_factory.mktemp("diff")
    products = []
    for side in (0, 1):
        tensors = weights(seed=seeds[side], rank=ranks[side])
        config = SOUND | {"r": ranks[side], "lora_alpha": alphas[side]}
        write_folder(place / str(side), tensors, config)
        a, b = (
            np.frombuffer(raw, "<f4").reshape(shape).astype(float)
            for _, shape, raw in tensors.values()
        )
        products.append(alphas[side] / ranks[side] * b @ a)
    with open_package(place / "0") as one, open_package(place / "1") as other:
        found = diff(one, other)
    (module,) = found.modules
    norms = [float(np.linalg.norm(product)) for product in products]
    cosine = float((products[0] * products[1]).sum()) / norms[0] / norms[1]
    assert module.norms == pytest.approx(norms)
    assert module.distance == pytest.approx(
        np.linalg.norm(products[0] - products[1]), abs=1e-12 * max(norms)
    )
    assert module.cosine == pytest.approx(cosine, abs=1e-9)
    assert found.total.distance == pytest.approx(module.distance)
    assert found.total.cosine == pytest.approx(module.cosine)


def test_what_only_one_has_is_as_far_as_it_is_large(tmp_path: Path) -> None:
    one = write_folder(tmp_path / "one", {**weights(), **weights(V, 1)}, SOUND)
    other = write_folder(tmp_path / "other", weights(), SOUND | {"lora_dropout": 0.5})
    with open_package(one) as first, open_package(other) as second:
        found = diff(first, second)
    same, missing = found.modules
    assert same.distance == 0
    assert same.cosine == pytest.approx(1)
    assert missing.norms == (missing.distance, 0)
    assert missing.cosine is None
    assert found.total.distance == missing.distance > 0
    assert found.config == {"lora_dropout": (None, 0.5)}


def test_diff_from_the_command_line(loramux: Loramux, tmp_path: Path) -> None:
    write_folder(tmp_path / "one", weights(), SOUND)
    write_folder(tmp_path / "two", weights(seed=1), SOUND | {"lora_alpha": 4})
    done = loramux("diff", "one", "two")
    assert done.code == 0
    assert "lora_alpha: 8 -> 4" in done.output
    assert re.search(rf"{re.escape(Q)} +[\d.]+ +[\d.]+ +[\d.]+ +-?[\d.]+", done.output)
    found = json.loads(loramux("diff", "one", "two", "--json").output)
    assert found.keys() == {"config", "modules", "total"}
    write_folder(tmp_path / "wide", weights(a=np.ones((4, 9))), SOUND)
    done = loramux("diff", "one", "wide")
    assert (done.code, done.output, done.errors.count("\n")) == (1, "", 1)
    assert "maps 8 to 6 features in one adapter and 9 to 6 in another" in done.errors


def test_inspect_lists_layers_in_their_order_with_what_they_use(
    loramux: Loramux, tmp_path: Path
) -> None:
    layers = {n: f"model.layers.{n}.self_attn.q_proj" for n in (10, 2)}
    tensors = {**weights(layers[10]), **weights(layers[2], b=np.full((6, 4), np.nan))}
    write_folder(tmp_path / "a", tensors, SOUND)
    lines = loramux("inspect", "a", "--modules").output.splitlines()
    rows = [line.split() for line in lines[4:]]
    assert [row[0] for row in rows] == [layers[2], layers[10]]
    assert rows[0][2:6] == ["░" * 24, "-", "-", "-"]
    assert 0 < rows[1][2].count("█") == round(24 * float(rows[1][3]) / 4) < 24
    found = json.loads(loramux("inspect", "a", "--json").output)["modules"]
    assert [entry["norm"] is None for entry in found] == [True, False]


def test_inspect_draws_a_picture(loramux: Loramux, tmp_path: Path) -> None:
    write_folder(tmp_path / "a", {**weights(), **weights(V, 1)}, SOUND)
    assert loramux("inspect", "a", "--plot", "ranks.png").code == 0
    assert Path("ranks.png").read_bytes().startswith(b"\x89PNG")


def test_packing_with_digests_is_reproducible(tmp_path: Path) -> None:
    folder = noted(write_folder(tmp_path / "a"))
    outputs = [io.BytesIO(), io.BytesIO()]
    for output in outputs:
        pack(folder, output)
    assert digest_of(outputs[0]) == digest_of(outputs[1])


def test_commands_of_weights_compute_in_one_thread(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", weights(), SOUND)
    program = """
import os, sys
from loramux.cli import main
sys.argv = ["loramux", *sys.argv[1:]]
try:
    main()
finally:
    print(os.environ.get("OPENBLAS_NUM_THREADS"), file=sys.stderr)
"""
    environment = {key: value for key, value in os.environ.items() if key != "OPENBLAS_NUM_THREADS"}
    for arguments, expected in ((("lint", "a"), "1"), (("pack", "a"), "None")):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=tmp_path, capture_output=True, text=True, check=True, env=environment,
        )  # fmt: skip
        assert done.stderr == f"{expected}\n"
