"""`diff` and `inspect`: what they measure is what the products B A are."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramux_adapters import open_package
from loramux_adapters.weights.diff import diff
from tests.adapters.files import write_folder
from tests.adapters.weights import SOUND, Q, V, random_pair
from tests.support.command_line import Loramux


@settings(max_examples=30)
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
        tensors = random_pair(seed=seeds[side], rank=ranks[side])
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
    one = write_folder(tmp_path / "one", {**random_pair(), **random_pair(V, 1)}, SOUND)
    other = write_folder(tmp_path / "other", random_pair(), SOUND | {"lora_dropout": 0.5})
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
    write_folder(tmp_path / "one", random_pair(), SOUND)
    write_folder(tmp_path / "two", random_pair(seed=1), SOUND | {"lora_alpha": 4})
    done = loramux("diff", "one", "two")
    assert done.code == 0
    assert "lora_alpha: 8 -> 4" in done.output
    assert re.search(rf"{re.escape(Q)} +[\d.]+ +[\d.]+ +[\d.]+ +-?[\d.]+", done.output)
    found = json.loads(loramux("diff", "one", "two", "--json").output)
    assert found.keys() == {"config", "modules", "total"}
    write_folder(tmp_path / "wide", random_pair(a=np.ones((4, 9))), SOUND)
    done = loramux("diff", "one", "wide")
    assert (done.code, done.output, done.errors.count("\n")) == (1, "", 1)
    assert "maps 8 to 6 features in one adapter, but 9 to 6 in another" in done.errors


def test_inspect_lists_layers_in_their_order_with_what_they_use(
    loramux: Loramux, tmp_path: Path
) -> None:
    layers = {n: f"model.layers.{n}.self_attn.q_proj" for n in (10, 2)}
    tensors = {**random_pair(layers[10]), **random_pair(layers[2], b=np.full((6, 4), np.nan))}
    write_folder(tmp_path / "a", tensors, SOUND)
    lines = loramux("inspect", "a", "--modules").output.splitlines()
    rows = [line.split() for line in lines[4:]]
    assert [row[0] for row in rows] == [layers[2], layers[10]]
    assert rows[0][2:6] == ["░" * 24, "-", "-", "-"]
    assert 0 < rows[1][2].count("█") == round(24 * float(rows[1][3]) / 4) < 24
    found = json.loads(loramux("inspect", "a", "--json").output)["modules"]
    assert [entry["norm"] is None for entry in found] == [True, False]


def test_inspect_draws_a_picture(loramux: Loramux, tmp_path: Path) -> None:
    write_folder(tmp_path / "a", {**random_pair(), **random_pair(V, 1)}, SOUND)
    assert loramux("inspect", "a", "--plot", "ranks.png").code == 0
    assert Path("ranks.png").read_bytes().startswith(b"\x89PNG")


def test_commands_of_weights_compute_in_one_thread(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", random_pair(), SOUND)
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
    for arguments, expected in ((("lint", "a"), "1"), (("--version",), "None")):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=tmp_path, capture_output=True, text=True, check=True, env=environment,
        )  # fmt: skip
        assert done.stderr == f"{expected}\n"
