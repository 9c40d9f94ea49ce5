"""Methods that are folded are packed as LoRA that adds the same."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import (
    BdLoraConfig,
    BeftConfig,
    DeftConfig,
    DeloraConfig,
    FourierFTConfig,
    GraloraConfig,
    HRAConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    OFTConfig,
    PeftConfig,
    PveraConfig,
    RoadConfig,
    ShiraConfig,
    TinyLoraConfig,
    UniLoraConfig,
    VBLoRAConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file

from loramux_adapters import PackageError, open_package, pack_source, unpack
from loramux_adapters.base import BaseFolder, read_base
from loramux_adapters.package import read_package
from loramux_adapters.weights import fold, lycoris
from loramux_adapters.weights.fold import Folded
from tests.support.adapters import quiet_peft, with_adapter
from tests.support.command_line import Loramux
from tests.support.models import tiny_model

PROMPT = torch.tensor([[1, 5, 9, 23, 42, 7]])
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIGS: dict[str, PeftConfig] = {
    "loha": LoHaConfig(r=3, alpha=5, target_modules=ALL, rank_pattern={"q_proj": 2}),
    "loha, wider than the layer": LoHaConfig(r=24, alpha=24, target_modules=["k_proj"]),
    "lokr, w2 whole": LoKrConfig(r=8, alpha=4, target_modules=ALL),
    "lokr, w2 in two": LoKrConfig(r=2, alpha=4, target_modules=ALL, alpha_pattern={"v_proj": 7}),
    "lokr, both in two": LoKrConfig(r=1, alpha=2, target_modules=ALL, decompose_both=True),
    "lokr, and modules whole": LoKrConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["norm", "lm_head"]
    ),
    "vera": VeraConfig(r=6, target_modules=["q_proj", "k_proj", "down_proj"]),
    "pvera": PveraConfig(r=6, target_modules=ALL),
    "miss, a rest of inputs": MissConfig(r=7, target_modules=ALL, modules_to_save=["norm"]),
    "miss, mini": MissConfig(r=4, target_modules=ALL, init_weights="mini", mini_r=8),
    "vblora": VBLoRAConfig(r=3, num_vectors=9, vector_length=8, topk=3, target_modules=ALL),
    "vblora, only topk": VBLoRAConfig(
        r=3, num_vectors=300, vector_length=16, save_only_topk_weights=True, target_modules=ALL
    ),
    "gralora": GraloraConfig(r=8, gralora_k=4, alpha=2, target_modules=ALL),
    "gralora, and one for the whole": GraloraConfig(r=4, hybrid_r=3, alpha=3, target_modules=ALL),
    "delora": DeloraConfig(r=5, rank_pattern={"q_proj": 2}, target_modules=ALL),
    "unilora": UniLoraConfig(
        r=3, theta_d_length=50, save_indices=True, target_modules=["q_proj", "down_proj"]
    ),
    "tinylora": TinyLoraConfig(r=3, u=7, weight_tying=1.0, target_modules=ALL),
    "hra": HRAConfig(r=5, target_modules=ALL),
    "hra, at right angles": HRAConfig(r=4, apply_GS=True, target_modules=ALL),
    "deft": DeftConfig(r=3, alpha=5, target_modules=ALL),
    "deft, orthonormal": DeftConfig(r=20, decomposition_method="qr", target_modules=ALL),
    "para": DeftConfig(r=3, para=True, target_modules=ALL, layers_to_transform=[1]),
    "pissa": LoraConfig(
        r=3, lora_alpha=5, init_lora_weights="pissa", target_modules=ALL, modules_to_save=["norm"],
        rank_pattern={"q_proj": 2},
    ),
    "olora": LoraConfig(r=4, init_lora_weights="olora", target_modules=ALL, use_rslora=True),
    "bdlora": LoraConfig(
        r=6, use_rslora=True, target_modules=ALL, modules_to_save=["norm"],
        use_bdlora=BdLoraConfig(["o_proj", "down_proj"], ["q_proj", "layers.1.mlp.up"], 2, False),
    ),
    "oft": OFTConfig(r=0, oft_block_size=8, target_modules=ALL, modules_to_save=["norm"]),
    "road": RoadConfig(group_size=8, target_modules=["q_proj", "down_proj"]),
    "fourierft": FourierFTConfig(n_frequency=512, target_modules=["k_proj"], scaling=9.0),
    "shira": ShiraConfig(r=2, target_modules=["o_proj"]),
    "beft": BeftConfig(target_modules=ALL, modules_to_save=["lm_head"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseFolder:
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama").save_pretrained(folder)
    return read_base(folder)


def save(folder: Path, config: PeftConfig) -> Path:
    """Save an adapter whose every weight is random."""
    torch.manual_seed(3)
    with quiet_peft():
        adapted = get_peft_model(copy.deepcopy(tiny_model("llama")), copy.deepcopy(config))
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.4)
    adapted.save_pretrained(str(folder))
    return folder


def packed(
    source: Path, base: BaseFolder | None = None, max_error: float = 0.01
) -> tuple[list[Folded], Path]:
    """Return what became of the layers, and the folder of the LoRA."""
    with (source / "out").open("w+b") as file:
        done = pack_source(source, file, base=base, max_error=max_error)
        unpack(file, read_package(file, file.tell()), source / "lora")
    return done, source / "lora"


def logits(folder: Path | None) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = with_adapter(tiny_model("llama"), folder)(input_ids=PROMPT).logits
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_the_logits_are_those_of_peft(name: str, tmp_path: Path, base: BaseFolder) -> None:
    source = save(tmp_path / "a", CONFIGS[name])
    done, folder = packed(source, base)
    wanted = logits(source)
    torch.testing.assert_close(logits(folder), wanted, rtol=0, atol=5e-5)
    assert (logits(None) - wanted).abs().max() > 0.01
    assert all(layer.error == 0 for layer in done)


@pytest.mark.parametrize("name", ["loha", "lokr, w2 whole"])
def test_what_has_too_high_a_rank_becomes_the_nearest_lora(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (fold, lycoris):
        monkeypatch.setattr(module, "MAX_RANK", 4)
    source = save(tmp_path / "a", CONFIGS[name])
    with pytest.raises(PackageError, match=r"the nearest one of rank 4 has error 0\.\d+, above"):
        packed(source)
    done, folder = packed(source, max_error=1.0)
    layer = next(layer for layer in done if layer.error)
    with torch.inference_mode():
        models = [with_adapter(tiny_model("llama"), each) for each in (source, folder)]
    exact, found = (
        model.get_submodule(f"base_model.model.{layer.module}").get_delta_weight("default")  # type: ignore[operator]
        for model in models
    )
    _, s, _ = torch.linalg.svd(exact)
    torch.testing.assert_close((exact - found).norm(), s[4:].norm(), rtol=1e-4, atol=1e-5)
    assert layer.error == pytest.approx(float(s[4:].norm() / s.norm()), rel=1e-4)


def test_pack_says_what_became_of_the_layers(loramux: Loramux, tmp_path: Path) -> None:
    save(tmp_path / "a", CONFIGS["lokr, w2 in two"])
    first, second = (loramux("pack", "a", "-o", name, "--json") for name in ("one", "two"))
    assert first.code == second.code == 0
    assert Path("one").read_bytes() == Path("two").read_bytes()
    layers = json.loads(first.output)["folded"]
    with open_package(Path("one")) as (_, package):
        assert package.method == "lora"
        assert {layer["module"]: layer["rank"] for layer in layers} == {
            module.module: module.rank for module in package.modules
        }


def refusal(source: Path, base: BaseFolder | None = None) -> str:
    with pytest.raises(PackageError) as caught:
        packed(source, base)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("loha", {"bias": "all"}, "'bias' = 'all' is not supported"),
        ("loha", {"r": 4, "rank_pattern": {}}, "do not have rank 4 and matching widths"),
        ("lokr, w2 whole", {"target_modules": ["q_proj"]}, "does not target it"),
        ("lokr, w2 whole", {"target_modules": "(.)\\1"}, "a backreference (\\1) is not supported"),
        ("loha", {"target_modules": "(?!.*q_proj).*"}, "does not target it"),
        ("loha", {"alpha": -1}, "lora_alpha is -1"),
        ("vera", {"bias": "ours"}, "bias is 'ours'; expected one of"),
        ("pvera", {"sample_at_inference": True}, "'sample_at_inference' = True is not sup"),
        ("miss, a rest of inputs", {"init_weights": "bat"}, "r is 7, which does not divide the 48"),
        ("miss, a rest of inputs", {"r": 6}, "miss_block has shape (7, 32), not (6, 32)"),
        ("miss, mini", {"mini_r": 5}, "mini_r is 5, which does not divide the 32 outputs"),
        ("vblora", {"topk": 10}, "topk is 10; expected an integer from 1 to 9"),
        ("vblora", {"r": 4}, "its logits have ranks 3 and 3, but adapter_config.json has r"),
        ("vblora, only topk", {"topk": 1}, "topk_weights has shape (3, 3, 1), not (3, 3, 0)"),
        ("gralora", {"gralora_k": 3}, "r is 8, not a multiple of gralora_k, 3"),
        ("gralora", {"alpha": 0}, "alpha is 0; expected a number above 0"),
        ("delora", {"rank_pattern": {}}, "delora_A has shape (2, 32), not (5, any)"),
        ("unilora", {"save_indices": False}, "save the adapter with save_indices=True"),
        ("hra", {"r": 6}, "hra_u has shape (48, 5), not (48, 6)"),
        ("deft", {"decomposition_method": "lu"}, "decomposition_method is 'lu'; expected 'relu'"),
        ("pissa", {"use_dora": True}, "'use_dora' = True is not supported: it does not com"),
        ("pissa", {"rank_pattern": {}}, "rank 2 differs from adapter_config.json"),
        ("oft", {"coft": True}, "'coft' = True is not supported"),
        ("oft", {"bias": "all"}, "'bias' = 'all' is not supported: biases are not sup"),
        ("oft", {"block_share": True}, "6 blocks of 8 inputs do not match 48"),
        ("road", {"group_size": 12}, "group_size is 12, which does not divide the 32 outputs"),
        ("road", {"variant": "road_2"}, "road_theta has shape (16,), not (32)"),
        ("road", {"variant": "road_3"}, "variant is 'road_3'; expected one of 'road_1'"),
        ("fourierft", {"random_loc_seed": -1}, "random_loc_seed is -1; expected an integer from 0"),
        ("fourierft", {"scaling": "1"}, "scaling is '1'; expected a number"),
        ("fourierft", {"scaling": 10**400}, "'scaling' is 1000"),
        ("bdlora", {"use_bdlora": {"nblocks": 5, "target_modules_bd_a": ["o_"]}}, "5 blocks"),
        ("bdlora", {"use_bdlora": {"blocks": 2}}, "use_bdlora is {'blocks': 2}; expected an obj"),
    ],
)
def test_a_config_that_is_not_served_is_named(
    name: str, changes: dict[str, object], message: str, tmp_path: Path, base: BaseFolder
) -> None:
    source = save(tmp_path / "a", CONFIGS[name])
    path = source / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert message in refusal(source, base)


@pytest.mark.parametrize(
    ("method", "ending"),
    [("loha", ".hada_w2_b"), ("pissa", ".lora_A.weight"), ("olora", ".lora_B.weight")],
)
def test_a_missing_tensor_is_named(
    method: str, ending: str, tmp_path: Path, base: BaseFolder
) -> None:
    source = save(tmp_path / "a", CONFIGS[method])
    path = source / "adapter_model.safetensors"
    tensors = load_file(path)
    name = min(name for name in tensors if name.endswith(ending))
    save_file({key: value for key, value in tensors.items() if key != name}, path)
    module = name.removeprefix("base_model.model.").removesuffix(ending)
    assert refusal(source, base) == f"module {module} has no {ending.removeprefix('.')}"


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    source = save(tmp_path / "a", CONFIGS["lokr, w2 in two"])
    path = source / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[min(tensors)][0, 0] = float("nan")
    save_file(tensors, path)
    assert refusal(source).endswith("a weight is NaN or infinite")


def test_vectors_of_which_it_is_not_saved_whose_they_are_are_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "a", TinyLoraConfig(r=2, u=3, target_modules=["q_proj", "k_proj"]))
    assert "the adapter has 4 vectors, and PEFT does not save which layer uses which" in refusal(
        source
    )


def test_what_depends_on_weights_says_so(tmp_path: Path, base: BaseFolder) -> None:
    source = save(tmp_path / "a", CONFIGS["hra"])
    assert "the update of HRA depends on the weight of the base; give the b" in refusal(source)
    tensors = {name: replace(each, dtype="U8") for name, each in base.tensors.items()}
    assert "its weight in the base has dtype U8" in refusal(source, replace(base, tensors=tensors))


def test_vera_says_what_it_needs(tmp_path: Path, base: BaseFolder) -> None:
    source = save(tmp_path / "a", CONFIGS["vera"])
    for given in (None, replace(base, tensors={})):
        assert refusal(source, given).endswith(
            "with `loramux pack --base`; its checkpoint must have a layer of that name"
        )
    with quiet_peft():
        without = VeraConfig(r=4, target_modules=["q_proj"], save_projection=False)
        source = save(tmp_path / "b", without)
    assert "save the adapter with save_projection=True" in refusal(source, base)
