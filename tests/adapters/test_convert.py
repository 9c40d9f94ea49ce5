"""Conversion loses what it says that it loses."""

import io
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from loramux_adapters import PackageError, read_package
from loramux_adapters.weights.convert import Converted, convert
from loramux_adapters.weights.dtypes import decoded, encoded, is_exact
from loramux_adapters.weights.spectrum import effective_rank, factors, singular_values, spectrum
from loramux_adapters.weights.update import Update
from tests.adapters.files import CONFIG, TENSORS, A, B, pair, write_folder
from tests.adapters.weights import assert_close, deltas, deltas_of_peft, opened
from tests.support.adapters import save_adapter, with_adapter
from tests.support.command_line import Loramux
from tests.support.models import tiny_model

TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@given(
    raw=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40),
    dtype=st.sampled_from(sorted(TORCH)),
)
def test_rounding_is_that_of_torch(raw: list[int], dtype: str) -> None:
    values = np.array(raw, np.uint32).view(np.float32)
    expected = torch.from_numpy(values.copy()).to(TORCH[dtype]).float().numpy()
    found = decoded(encoded(values, dtype), dtype)
    np.testing.assert_array_equal(found, expected)
    same = (values == expected) | (np.isnan(values) & np.isnan(expected))
    assert is_exact(values, dtype) == same.all()


FLOATS = st.floats(-8, 8, width=32)


@st.composite
def updates(draw: st.DrawFn) -> Update:
    """Updates of any small shape, wide and tall, with zeros and repeated rows."""
    rank, width_in, width_out = (draw(st.integers(1, 6)) for _ in range(3))
    a_RI = draw(arrays.arrays(np.float32, (rank, width_in), elements=FLOATS))
    b_OR = draw(arrays.arrays(np.float32, (width_out, rank), elements=FLOATS))
    return Update("m", draw(st.floats(0.1, 8)), a_RI, b_OR)


@given(update=updates())
def test_singular_values_are_those_of_the_product(update: Update) -> None:
    product = update.scale * update.b_OR.astype(np.float64) @ update.a_RI
    expected = np.linalg.svd(product, compute_uv=False)
    found = singular_values(factors(update))
    size = max(len(expected), len(found))
    one, other = (np.pad(each, (0, size - len(each))) for each in (found, expected))
    scale = max(1.0, update.scale * np.abs(update.a_RI).max() * np.abs(update.b_OR).max())
    np.testing.assert_allclose(one, other, atol=1e-11 * scale)
    whole = spectrum(factors(update))
    np.testing.assert_allclose(whole.u_OK * whole.s_K @ whole.v_KI, product, atol=1e-11 * scale)
    if product.any() and expected[0] > 1e-6:
        assert 1 - 1e-9 <= effective_rank(found) <= len(found) + 1e-9


def test_equal_directions_count_fully_and_small_ones_hardly() -> None:
    assert effective_rank(np.array([3.0, 3.0, 3.0])) == pytest.approx(3)
    assert effective_rank(np.array([5.0, 0.0])) == pytest.approx(1)
    assert effective_rank(np.array([1.0, 1e-3])) == pytest.approx(1, abs=1e-4)
    assert effective_rank(np.zeros(2)) == 0


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(
        tiny_model("llama"), tmp_path_factory.mktemp("convert") / "saved", seed=3, r=8,
        lora_alpha=12, target_modules=["q_proj", "k_proj", "up_proj"], use_rslora=True,
        rank_pattern={"k_proj": 3, "layers.1.mlp.up_proj": 5}, alpha_pattern={"up_proj": 7},
    )  # fmt: skip


def converted(folder: Path, **options: Any) -> tuple[io.BytesIO, list[Converted]]:
    output = io.BytesIO()
    with ExitStack() as stack:
        ((file, package),) = opened(stack, folder)
        return output, convert(file, package, output, **options)


def original(folder: Path) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    with ExitStack() as stack:
        ((file, _),) = opened(stack, folder)
        return deltas(file)


@pytest.mark.parametrize("rank", [1, 3, 4, 8, 20])
def test_a_lower_rank_is_the_best_of_that_rank(rank: int, saved: Path) -> None:
    output, done = converted(saved, rank=rank)
    before, after = original(saved), deltas(output)
    for each in done:
        u, s, v = np.linalg.svd(before[each.module], full_matrices=False)
        best = u[:, :rank] * s[:rank] @ v[:rank]
        np.testing.assert_allclose(after[each.module], best, atol=1e-6 * s[0])
        assert each.rank == min(rank, each.rank_before)
        assert each.energy == pytest.approx((s[:rank] ** 2).sum() / (s**2).sum(), abs=1e-9)
        lost = np.linalg.norm(after[each.module] - before[each.module]) / np.linalg.norm(s)
        assert each.error == pytest.approx(lost, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 1.0])
def test_the_rank_is_the_least_that_keeps_the_energy(energy: float, saved: Path) -> None:
    _, done = converted(saved, energy=energy)
    before = original(saved)
    for each in done:
        shares = np.cumsum(np.linalg.svd(before[each.module], compute_uv=False) ** 2)
        shares /= shares[-1]
        assert shares[each.rank - 1] >= energy - 1e-9
        assert each.rank == 1 or shares[each.rank - 2] < energy
        assert each.energy >= energy - 1e-9


@pytest.mark.parametrize(
    ("dtype", "short", "most"), [("float16", "F16", 1e-3), ("bfloat16", "BF16", 8e-3)]
)
def test_another_dtype_keeps_the_config(dtype: str, short: str, most: float, saved: Path) -> None:
    output, done = converted(saved, dtype=dtype)
    found = read_package(output, output.seek(0, 2))
    with ExitStack() as stack:
        ((_, before),) = opened(stack, saved)
    assert found.peft_config == before.peft_config
    assert {tensor.dtype for tensor in found.file.tensors.values()} == {short}
    assert all(0 < each.error < most for each in done)
    assert {each.energy for each in done} == {1.0}


def test_float16_keeps_small_factors_of_low_ranks(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pairs = {}
    for name, rank, size in (("a.q_proj", 1, 1e-4), ("b.q_proj", 512, 1), ("c.q_proj", 512, 1)):
        for half, shape in (("A", (rank, 8)), ("B", (8, rank))):
            values = random.normal(size=shape) * (size if half == "B" else 1)
            key = f"base_model.model.{name}.lora_{half}.weight"
            pairs[key] = ("F32", list(shape), values.astype("<f4").tobytes())
    patterns = {"rank_pattern": {"a.q_proj": 1}, "alpha_pattern": {"a.q_proj": 1}}
    config = CONFIG | {"r": 512, "lora_alpha": 512} | patterns
    folder = write_folder(tmp_path / "mixed", pairs, config)
    _, (small, *_) = converted(folder, rank=512, dtype="float16")
    assert small.rank == 1
    assert small.error < 1e-3


def test_an_adapter_in_its_own_dtype_loses_nothing(saved: Path) -> None:
    output, done = converted(saved, dtype="float32")
    assert {each.error for each in done} == {0.0}
    assert_close(deltas(output), original(saved), 0)


def test_peft_computes_what_the_converted_adapter_says(
    saved: Path, loramux: Loramux, tmp_path: Path
) -> None:
    done = loramux("convert", str(saved), "-o", "low", "--rank", "4", "--json")
    report = json.loads(done.output)
    assert report["size_bytes"] == Path("low").stat().st_size
    assert {each["rank"] for each in report["modules"]} == {3, 4}
    loramux("unpack", "low", "-o", "folder")
    model: Any = with_adapter(tiny_model("llama"), tmp_path / "folder")
    with Path("low").open("rb") as file:
        assert_close(deltas_of_peft(model, "default"), deltas(file), 1e-6)


def test_a_conversion_is_noted_after_those_before(saved: Path, loramux: Loramux) -> None:
    loramux("convert", str(saved), "-o", "one", "--rank", "4")
    loramux("convert", "one", "-o", "two", "--dtype", "bfloat16")
    notes = json.loads(loramux("inspect", "two", "--json").output)["notes"]
    steps = notes["provenance"]["steps"]
    assert [(step["dtype"], step.get("rank")) for step in steps] == [("F32", 4), ("BF16", None)]


def test_a_dead_module_stays_dead(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "dead", pair("q_proj", 3), CONFIG | {"r": 3})
    _, (done,) = converted(folder, energy=0.9)
    assert (done.rank, done.energy, done.error) == (1, 1.0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--rank 0", "rank is 0; it must be 1 or more"),
        ("--energy 0", "energy is 0; it must be above 0, up to 1"),
        ("--energy 1.01", "energy is 1.01; it must be above 0, up to 1"),
        ("--energy 0.9 --rank 2", "give rank or energy, not both"),
        ("--dtype int4", "dtype is 'int4'; expected one of float32, float16, bfloat16"),
    ],
)
def test_a_mistake_writes_nothing(
    arguments: str, message: str, loramux: Loramux, poet: Path
) -> None:
    done = loramux("convert", "poet", "-o", "out", *arguments.split())
    assert (done.code, done.output, done.errors.count("\n")) == (1, "", 1)
    assert message in done.errors
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        (np.nan, {"rank": 1}, "a weight is NaN or infinite"),
        (np.inf, {"dtype": "bfloat16"}, "a weight is NaN or infinite"),
        (70000.0, {"dtype": "float16"}, "a weight of 70000 is too large for dtype F16"),
    ],
)
def test_what_cannot_be_written_is_refused(
    value: float, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tensors = {A: TENSORS[A], B: ("F32", [3, 2], np.full(6, value, "<f4").tobytes())}
    with pytest.raises(PackageError, match=message) as caught:
        converted(write_folder(tmp_path / "bad", tensors), **options)
    assert caught.value.reason == "ADAPTER_NOT_FINITE"


def test_what_chooses_among_experts_has_a_rank_of_its_own(tmp_path: Path) -> None:
    folder = save_adapter(
        tiny_model("qwen3-moe"), tmp_path / "adapter", seed=0, r=4, target_modules=["q_proj"],
        target_parameters=["gate.weight"], rank_pattern={"gate.weight": 2},
    )  # fmt: skip
    output = io.BytesIO()
    with ExitStack() as stack:
        convert(*opened(stack, folder)[0], output, rank=3)
    found = read_package(output, output.seek(0, 2))
    ranks = {module.module.rpartition(".")[2]: module.rank for module in found.modules}
    assert ranks == {"q_proj": 3, "gate": 2}
