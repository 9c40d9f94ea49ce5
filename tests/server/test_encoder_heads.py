"""Heads of encoders for tasks: what transformers' classes make of hidden states, adapters in it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, LongformerConfig

from loramux_adapters import PackageError, open_package
from loramux_adapters.base import read_base
from loramux_adapters.head import FEATURES, LABELS, HeadShape, Task
from loramux_adapters.post_layers import check_head
from loramux_adapters.weights.verify import verify
from loramux_server.lora.edits import Edits, num_edit_bytes
from loramux_server.models.heads import Heads
from tests.support.adapters import save_tuned
from tests.support.embedders import save_embedder
from tests.support.encoder_heads import (
    CONFIGS,
    TEXT,
    config_for,
    expected,
    head_in,
    heads_of,
    package_of,
    save_encoder,
    save_headed,
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Heads]]:
    folder = tmp_path_factory.mktemp("bases")
    found = {name: save_encoder(name, folder / name) for name in CONFIGS}
    return {name: (base, heads_of(base)) for name, base in found.items()}


def check_logits(base: Path, heads: Heads, task: Task, config: LoraConfig, folder: Path) -> None:
    hidden_TK, wanted = expected(save_headed(base, task, config, folder))
    found = head_in(folder, heads)(hidden_TK)
    assert (
        found.shape == wanted.shape == (1 if task is Task.SEQUENCE else len(TEXT), wanted.shape[-1])
    )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("name", list(CONFIGS))
def test_logits_are_those_of_peft(
    bases: dict[str, tuple[Path, Heads]], tmp_path: Path, name: str, task: Task
) -> None:
    check_logits(*bases[name], task, config_for(name, task), tmp_path / "a")


BEHIND: dict[str, tuple[str, Task, dict[str, Any]]] = {
    "lora of a pooler": ("bert", Task.SEQUENCE, {"target_modules": ["dense"]}),
    "dora of a pooler": ("bert", Task.SEQUENCE, {"target_modules": ["dense"], "use_dora": True}),
    "all linear": ("bert", Task.SEQUENCE, {"target_modules": "all-linear"}),
    "bias of a pooler": ("bert", Task.SEQUENCE, {"bias": "all"}),
    "bias of an adapted pooler": (
        "bert", Task.SEQUENCE, {"target_modules": ["dense"], "bias": "lora_only"},
    ),
    "bias of the change": ("bert", Task.SEQUENCE, {"target_modules": ["dense"], "lora_bias": True}),
    "a pooler of its own": ("bert", Task.SEQUENCE, {"modules_to_save": ["pooler"]}),
    "a pooler that is a layer": ("albert", Task.SEQUENCE, {"target_modules": "all-linear"}),
    "lora of what fills in words": ("modernbert", Task.SEQUENCE, {"target_modules": "all-linear"}),
    "of tokens": ("modernbert", Task.TOKENS, {"target_modules": ["dense", "Wo"]}),
    "of its own": ("modernbert-mean", Task.SEQUENCE, {"modules_to_save": ["head"]}),
    "biases of two layers": ("roberta", Task.SEQUENCE, {"bias": "all"}),
}  # fmt: skip


@pytest.mark.parametrize("options", [{"use_dora": True}, {"bias": "all"}], ids=str)
@pytest.mark.parametrize("name", ["bert", "albert"])
def test_verify_knows_no_pooler_of_a_base_that_fills_in_words(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    folder = save_encoder(name, tmp_path / "base", AutoModelForMaskedLM)
    config = LoraConfig(task_type=FEATURES, r=2, target_modules="all-linear", **options)
    save_tuned(AutoModel.from_pretrained(str(folder)), config, tmp_path / "a", seed=1)
    with open_package(tmp_path / "a") as (file, package):
        assert any("pooler" in module for module in package.contents.changed_modules)
        assert verify(file, package, base=read_base(folder))[-1].check == "base"
    weights = tmp_path / "a" / "adapter_model.safetensors"
    settings = tmp_path / "a" / "adapter_config.json"
    save_file(
        {k.replace("pooler", "poller"): each for k, each in load_file(weights).items()}, weights
    )
    settings.write_text(settings.read_text().replace("pooler", "poller"))
    with (
        open_package(tmp_path / "a") as (file, package),
        pytest.raises(PackageError, match="poller"),
    ):
        verify(file, package, base=read_base(folder))


@pytest.mark.parametrize("case", list(BEHIND))
def test_what_is_done_behind_the_layers_counts(
    bases: dict[str, tuple[Path, Heads]], tmp_path: Path, case: str
) -> None:
    name, task, more = BEHIND[case]
    check_logits(*bases[name], task, config_for(name, task, **more), tmp_path / "a")


def test_a_head_says_what_it_is_made_of(bases: dict[str, tuple[Path, Heads]]) -> None:
    bert, modern, distil = (bases[name][1] for name in ("bert", "modernbert", "distilbert"))
    shape = bert.shapes[Task.SEQUENCE]
    assert shape.architecture == "BertForSequenceClassification"
    assert shape.parameters == {
        "bert.pooler.dense.weight": (16, 16), "bert.pooler.dense.bias": (16,),
        "classifier.weight": (LABELS, 16), "classifier.bias": (LABELS,),
    }  # fmt: skip
    assert shape.brought == ("bert.pooler.dense.weight", "bert.pooler.dense.bias")
    assert (bert.post_layers, modern.post_layers) == (frozenset({"pooler"}), frozenset())
    assert set(bert.shapes[FEATURES].parameters) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert not modern.shapes[FEATURES].parameters
    assert "bert.pooler.dense.weight" not in bert.shapes[Task.TOKENS].parameters
    assert modern.shapes[Task.TOKENS].brought == ("head.dense.weight", "head.norm.weight")
    assert distil.shapes[Task.SEQUENCE].brought == ()
    assert distil.shapes[Task.SPANS].parameters["qa_outputs.weight"] == (2, 16)


@pytest.mark.parametrize("targets", [["query_proj"], ["query_proj", "dense"]])
def test_layers_that_were_lost_are_named(
    bases: dict[str, tuple[Path, Heads]], tmp_path: Path, targets: list[str]
) -> None:
    base, heads = bases["deberta"]
    config = config_for("deberta", Task.SEQUENCE, modules_to_save=None, target_modules=targets)
    save_headed(base, Task.SEQUENCE, config, tmp_path / "a")
    reported = (
        r"tensor base_model\.model\.pooler\.dense\.weight is missing: "
        r"DebertaV2ForSequenceClassification has it .* if modules_to_save has 'pooler\.dense'"
    )
    with pytest.raises(PackageError, match=reported) as caught:
        head_in(tmp_path / "a", heads)
    assert caught.value.reason == "ADAPTER_BASE_MISMATCH"


def test_a_pooler_has_to_be_saved_with_the_base(tmp_path: Path) -> None:
    base = save_encoder("bert", tmp_path / "base", AutoModelForMaskedLM)
    heads = heads_of(base)
    config = config_for("bert", Task.SEQUENCE)
    save_headed(base, Task.SEQUENCE, config, tmp_path / "a")
    with pytest.raises(PackageError, match=r"bert\.pooler\.dense\.weight is missing"):
        head_in(tmp_path / "a", heads)
    config = config_for("bert", Task.SEQUENCE, modules_to_save=["pooler"])
    check_logits(base, heads, Task.SEQUENCE, config, tmp_path / "b")
    check_logits(base, heads, Task.TOKENS, config_for("bert", Task.TOKENS), tmp_path / "c")


def test_an_adapter_of_another_encoder_does_not_fit(
    bases: dict[str, tuple[Path, Heads]], tmp_path: Path
) -> None:
    base, heads = bases["roberta"]
    save_headed(base, Task.SEQUENCE, config_for("roberta", Task.SEQUENCE), tmp_path / "a")
    check_head(package_of(tmp_path / "a", heads).contents, heads.shapes)
    other = bases["bert"][1]
    reported = r"BertForSequenceClassification has no parameter classifier\.dense\.bias after"
    with pytest.raises(PackageError, match=reported):
        check_head(package_of(tmp_path / "a", other).contents, other.shapes)
    with pytest.raises(PackageError, match="a head must be one linear layer"):
        check_head(package_of(tmp_path / "a", heads).contents, {})


def test_an_adapter_without_a_head_may_change_a_pooler(
    bases: dict[str, tuple[Path, Heads]], tmp_path: Path
) -> None:
    base, heads = bases["bert"]
    save_embedder(
        AutoModel.from_pretrained(str(base)), tmp_path / "a", seed=1, task_type=FEATURES, r=2,
        target_modules=["pooler.dense", "query"],
    )  # fmt: skip
    contents = package_of(tmp_path / "a", heads).contents
    assert contents.post_layers is not None
    assert [each.module for each in contents.post_layers.modules] == ["pooler.dense"]
    assert {each.module.rpartition(".")[2] for each in contents.modules} == {"query"}
    check_head(contents, heads.shapes)


def test_a_pooler_that_the_base_was_loaded_without_is_known_from_its_file(
    bases: dict[str, tuple[Path, Heads]], tmp_path: Path
) -> None:
    base, _ = bases["bert"]
    module = AutoModel.from_pretrained(str(base), add_pooling_layer=False).eval()
    heads = Heads.of(module, module.config, str(base))
    assert module.pooler is None
    assert heads.post_layers == frozenset()
    check_logits(base, heads, Task.SEQUENCE, config_for("bert", Task.SEQUENCE), tmp_path / "a")


def test_a_model_that_was_not_saved_has_the_pooler_that_it_has(
    bases: dict[str, tuple[Path, Heads]],
) -> None:
    module = AutoModel.from_pretrained(str(bases["bert"][0])).eval()
    known = Heads.of(module, module.config).known(Task.SEQUENCE)
    assert set(known) == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    torch.testing.assert_close(known["bert.pooler.dense.weight"], module.pooler.dense.weight)


def test_weights_in_16_bits_are_served(bases: dict[str, tuple[Path, Heads]]) -> None:
    for name in ("bert", "modernbert"):
        path = str(bases[name][0])
        module = AutoModel.from_pretrained(path, dtype=torch.bfloat16).eval()
        heads = Heads.of(module, module.config, path)
        assert not any(shape.fault for shape in heads.shapes.values())
        assert all(value.dtype is torch.float32 for value in heads.known(Task.SEQUENCE).values())


def test_what_computes_something_else_is_not_served(tmp_path: Path) -> None:
    # Its class for texts has the first token see all others, and its base model alone does not.
    torch.manual_seed(3)
    config = LongformerConfig(
        vocab_size=61, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=40, attention_window=4, initializer_range=0.3,
    )  # fmt: skip
    heads = Heads.of(AutoModel.from_config(config).eval(), config)
    reported = (
        "LongformerForSequenceClassification does not compute its logits from the last hidden"
    )
    assert reported in heads.shapes[Task.SEQUENCE].fault
    assert not heads.shapes[Task.TOKENS].fault
    roberta = save_encoder("roberta", tmp_path / "base")
    save_headed(roberta, Task.SEQUENCE, config_for("roberta", Task.SEQUENCE), tmp_path / "a")
    with pytest.raises(PackageError, match=f"does not support heads for it: {reported}"):
        check_head(package_of(tmp_path / "a", heads).contents, heads.shapes)


@pytest.mark.parametrize(
    "case", ["lora of a pooler", "a pooler of its own", "biases of two layers"]
)
def test_room_is_counted_for_a_head(
    bases: dict[str, tuple[Path, Heads]], tmp_path: Path, case: str
) -> None:
    name, task, more = BEHIND[case]
    base, heads = bases[name]
    save_headed(base, task, config_for(name, task, **more), tmp_path / "a")
    edits = Edits(head=head_in(tmp_path / "a", heads)).to(torch.device("cpu"))
    package = package_of(tmp_path / "a", heads)
    others = replace(package, contents=replace(package.contents, head=None, post_layers=None))
    counted = num_edit_bytes(package) - num_edit_bytes(others)
    assert edits.num_bytes <= counted <= edits.num_bytes + 4 * (16 + 3)
    assert edits.head is not None
    assert edits.head(torch.ones(4, 16)).shape == (1, 3)


def test_the_frontend_learns_the_shapes(bases: dict[str, tuple[Path, Heads]]) -> None:
    shapes = bases["albert"][1].shapes
    raw = msgspec.msgpack.encode(shapes)
    assert msgspec.msgpack.decode(raw, type=dict[str, HeadShape]) == shapes
