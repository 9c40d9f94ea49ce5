"""Merged adapters are what PEFT's add_weighted_adapter makes."""

import io
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from loramux_adapters import PackageError, read_package
from loramux_adapters.weights.combine import Draw
from loramux_adapters.weights.merge import MERGE_METHODS, MergeOptions, merge
from tests.adapters.files import CONFIG, TENSORS, A, B, pair, write_folder
from tests.adapters.weights import assert_close, deltas, deltas_of_peft, opened
from tests.support.adapters import quiet_peft, save_adapter, with_adapter
from tests.support.command_line import Loramux
from tests.support.models import tiny_model

WEIGHTS = (0.7, -0.4, 1.5)
EQUAL_RANKS = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Adapters of one rank, with different scales; one has layers that the others lack."""
    model = tiny_model("llama")
    place = tmp_path_factory.mktemp("adapters")
    configs: list[dict[str, Any]] = [
        {"lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        {"lora_alpha": 3, "target_modules": ["v_proj"], "use_rslora": True},
        {"lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"v_proj": 1}},
    ]
    return [
        save_adapter(model, place / str(seed), seed=seed, r=4, **config)
        for seed, config in enumerate(configs)
    ]


@pytest.fixture(scope="module")
def unequal(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The first adapter, and one with two other ranks."""
    other = save_adapter(
        tiny_model("llama"), tmp_path_factory.mktemp("unequal") / "other", seed=9, r=3,
        lora_alpha=5, target_modules=["k_proj", "v_proj"], rank_pattern={"k_proj": 2},
    )  # fmt: skip
    return [folders[0], other]


def loaded(folders: list[Path]) -> PeftModel:
    """Return PEFT's model with all of `folders`, named by their places."""
    model: Any = with_adapter(tiny_model("llama"), folders[0])
    with quiet_peft():
        for place, folder in enumerate(folders[1:], 1):
            model.load_adapter(str(folder), adapter_name=str(place))
    return model


def merged_by_peft(folders: list[Path], method: str, **options: Any) -> dict[str, Any]:
    model = loaded(folders)
    names = ["default", *(str(place) for place in range(1, len(folders)))]
    torch.manual_seed(5)
    with quiet_peft():
        model.add_weighted_adapter(
            names, list(WEIGHTS[: len(names)]), "merged", combination_type=method, **options
        )
    return deltas_of_peft(model, "merged")


def merged(folders: list[Path], options: MergeOptions, draw: Draw | None = None) -> io.BytesIO:
    output = io.BytesIO()
    with ExitStack() as stack:
        merge(opened(stack, *folders), output, options, draw=draw)
    return output


def as_peft_draws(folders: list[Path]) -> Draw:
    """Return the draws that PEFT makes in `merged_by_peft`: after those of new layers."""
    merged_by_peft(folders, "linear")  # which draws nothing after them
    state = torch.get_rng_state()
    generator = torch.Generator()
    generator.set_state(state)

    def draw(shape: tuple[int, ...], density: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
        kept = torch.bernoulli(torch.full(shape, density), generator=generator)
        return kept.bool().numpy()

    return draw


CASES = [
    (method, density, sign)
    for method in MERGE_METHODS
    for density in ((None,) if method in ("cat", "svd", "linear") else (0.3, 1.0))
    for sign in (("total", "frequency") if "ties" in method else ("total",))
]


@pytest.mark.parametrize(("method", "density", "sign"), CASES)
def test_a_merge_is_that_of_peft(
    method: str, density: float | None, sign: Any, folders: list[Path]
) -> None:
    with quiet_peft():
        expected = merged_by_peft(folders, method, density=density, majority_sign_method=sign)
    draw = as_peft_draws(folders) if method.startswith("dare") else None
    options = MergeOptions(method=method, weights=WEIGHTS, sign=sign, density=density)
    # PEFT decomposes in float32.
    assert_close(deltas(merged(folders, options, draw)), expected, 3e-5)


@pytest.mark.parametrize(
    ("method", "rank"), [("cat", None), *(("svd", rank) for rank in (None, 2, 5, 6, 12))]
)
def test_ranks_may_differ(method: str, rank: int | None, unequal: list[Path]) -> None:
    options = MergeOptions(method=method, weights=WEIGHTS[:2], rank=rank)
    expected = merged_by_peft(unequal, method, svd_rank=rank)
    output = merged(unequal, options)
    assert_close(deltas(output), expected, 1e-5)
    found = read_package(output, output.seek(0, 2))
    ranks = {module.module.rpartition(".")[2]: module.rank for module in found.modules}
    limit = 7 if method == "cat" else rank or 4
    assert ranks == {"q_proj": min(4, limit), "k_proj": min(2, limit), "v_proj": min(7, limit)}


def test_a_rank_above_all_is_the_exact_sum(unequal: list[Path]) -> None:
    exact, best = (
        deltas(merged(unequal, MergeOptions(method=method, rank=rank)))
        for method, rank in (("cat", None), ("svd", 40))
    )
    assert_close(best, exact, 1e-6)


def test_what_chooses_among_experts_is_merged_as_layers_are(
    loramux: Loramux, tmp_path: Path
) -> None:
    model, targets = tiny_model("qwen3-moe"), {"target_modules": ["q_proj"]}
    configs: list[dict[str, Any]] = [
        targets | {"target_parameters": ["gate.weight"], "rank_pattern": {"gate.weight": 3}},
        targets | {"target_parameters": ["mlp.gate.weight"]},
        targets,
    ]
    sources = [
        save_adapter(model, tmp_path / str(seed), seed=seed, r=2, **config)
        for seed, config in enumerate(configs)
    ]
    parts = [with_adapter(model, source) for source in sources]
    expected: dict[str, Any] = {}
    for weight, part in zip(WEIGHTS, parts, strict=True):
        for name, delta in deltas_of_peft(part, "default").items():
            expected[name] = expected.get(name, 0) + weight * delta
    for order in ([0, 1, 2], [2, 1, 0]):
        names = ",".join(str(WEIGHTS[number]) for number in order)
        folders = [str(sources[number]) for number in order]
        assert loramux("merge", *folders, "-o", "merged", "--weights", names).code == 0
        assert loramux("unpack", "merged", "-o", f"folder {order}").code == 0
        merged_model = with_adapter(model, tmp_path / f"folder {order}")
        assert_close(deltas_of_peft(merged_model, "default"), expected, 1e-5)


def test_peft_loads_a_merged_adapter(unequal: list[Path], loramux: Loramux, tmp_path: Path) -> None:
    sources = [str(folder) for folder in unequal]
    assert loramux("merge", *sources, "-o", "merged", "--weights", "0.7,-0.4").code == 0
    assert loramux("unpack", "merged", "-o", "folder").code == 0
    model: Any = with_adapter(tiny_model("llama"), tmp_path / "folder")
    assert_close(deltas_of_peft(model, "default"), merged_by_peft(unequal, "cat"), 1e-6)


def test_dare_is_the_same_for_the_same_seed(folders: list[Path]) -> None:
    made = [
        merged(folders, MergeOptions(method="dare_ties", density=0.5, seed=seed)).getvalue()
        for seed in (1, 1, 2)
    ]
    assert made[0] == made[1] != made[2]


def test_a_flipped_bit_of_a_merged_adapter_is_found(
    loramux: Loramux, poet: Path, tmp_path: Path
) -> None:
    assert loramux("merge", "poet", "poet", "-o", "both").code == 0
    assert loramux("verify", "both").code == 0
    content = bytearray((tmp_path / "both").read_bytes())
    content[-9] ^= 1
    (tmp_path / "both").write_bytes(content)
    assert "the tensor was changed after packing" in loramux("verify", "both").errors


def test_a_merge_says_where_it_is_from(folders: list[Path]) -> None:
    output = merged(folders, MergeOptions(method="ties", density=0.5, weights=WEIGHTS))
    notes: Any = read_package(output, output.seek(0, 2)).notes
    (step,) = notes["provenance"]["steps"]
    assert [digest[:7] for digest in step.pop("of")] == ["sha256:"] * 3
    assert step == {
        "made_by": "loramux merge", "method": "ties", "weights": list(WEIGHTS), "density": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "sum"}, "method is 'sum'; expected one of cat, svd, linear, magnitude_prune"),
        ({"method": "ties"}, "density is None; for ties it must be above 0, up to 1"),
        ({"method": "ties", "density": 0}, "density is 0; for ties it must be"),
        ({"method": "dare_ties", "density": 1.5}, "density is 1.5; for dare_ties"),
        ({"method": "cat", "density": 0.5}, "method cat keeps all entries: omit density"),
        ({"method": "cat", "rank": 4}, "rank is 4; it needs an svd method"),
        ({"method": "svd", "rank": 0}, "rank is 0; it needs an svd method, and must be 1 or more"),
        ({"weights": (1.0, float("nan"))}, "each must be finite"),
        ({"sign": "odd"}, "sign is 'odd'; expected total or frequency"),
        ({"dtype": "int8"}, "dtype is 'int8'; expected one of float32, float16, bfloat16"),
        ({"weights": (1.0,)}, "1 weights are given for 2 adapters"),
    ],
)
def test_options_that_cannot_be_are_refused(
    options: dict[str, Any], message: str, folders: list[Path]
) -> None:
    with pytest.raises(PackageError) as caught:
        merged(folders[:2], MergeOptions(**options))
    assert message in str(caught.value)
    assert caught.value.reason == "INVALID_FIELD"


@pytest.mark.parametrize("method", EQUAL_RANKS)
def test_methods_on_factors_need_equal_ranks(method: str, unequal: list[Path]) -> None:
    density = None if method == "linear" else 0.5
    with pytest.raises(PackageError, match=r"v_proj has ranks 3, 4: .* needs equal ranks"):
        merged(unequal, MergeOptions(method=method, density=density))


def test_a_sum_of_ranks_has_a_limit(tmp_path: Path) -> None:
    module = A.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
    folder = write_folder(tmp_path / "wide", pair(module, 300), CONFIG | {"r": 300})
    with pytest.raises(PackageError, match="the ranks add up to 600, above 512; use svd"):
        merged([folder, folder], MergeOptions())
    merged([folder, folder], MergeOptions(method="svd", rank=4))


def test_adapters_of_different_bases_are_refused(tmp_path: Path) -> None:
    module = A.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
    one = write_folder(tmp_path / "one", config=CONFIG | {"base_model_name_or_path": "a"})
    other = write_folder(tmp_path / "other", config=CONFIG | {"base_model_name_or_path": "b"})
    wide = write_folder(tmp_path / "wide", pair(module, 2, features=(5, 3)))
    with pytest.raises(PackageError, match="different base models: 'a', 'b'"):
        merged([one, other], MergeOptions())
    with pytest.raises(PackageError, match="maps 4 to 3 features in one adapter, but 5 to 3"):
        merged([one, wide], MergeOptions())


def test_a_weight_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    bad = dict(TENSORS) | {B: ("F32", [3, 2], np.full(6, np.nan, "<f4").tobytes())}
    folders = [write_folder(tmp_path / "good"), write_folder(tmp_path / "bad", bad)]
    with pytest.raises(PackageError, match="a weight is NaN or infinite") as caught:
        merged(folders, MergeOptions())
    assert caught.value.reason == "ADAPTER_NOT_FINITE"


def test_merge_from_the_command_line(loramux: Loramux, poet: Path) -> None:
    done = loramux("merge", "poet", "poet", "-o", "both", "--method", "svd", "--json")
    assert (done.code, json.loads(done.output)["path"]) == (0, "both")
    for arguments, message in (
        ("--weights 1", "1 weights are given for 2 adapters"),
        ("--method ties", "density is None"),
        ("--into-base absent", "base model: absent/config.json cannot be read"),
    ):
        done = loramux("merge", "poet", "poet", "-o", "no", *arguments.split())
        assert (done.code, done.output, done.errors.count("\n")) == (1, "", 1)
        assert message in done.errors
        assert not Path("no").exists()
    assert loramux("merge", "poet", "-o", "no", "--weights", "one").code == 2
