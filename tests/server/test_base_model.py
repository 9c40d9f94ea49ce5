"""What becomes of a base model when it is made ready, and which are refused."""

import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BlenderbotSmallConfig,
    BloomConfig,
    DiffLlamaConfig,
    DogeConfig,
    ElectraConfig,
    HunYuanMoEV1Config,
    Llama4TextConfig,
    LlamaConfig,
    MarianConfig,
    MBartConfig,
    MiniMaxConfig,
    MistralConfig,
    PegasusConfig,
    Phi3Config,
    PhimoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    RecurrentGemmaConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from loramux_server.engine.batch import Batch
from loramux_server.engine.build import build_engine
from loramux_server.engine.context_length import served_context
from loramux_server.engine.fit import NoRoomError
from loramux_server.engine.model_runner import ModelRunner
from loramux_server.engine.plan import Chunk
from loramux_server.engine.request import Request
from loramux_server.kernels.backend import DEFINITIONS, choose_backend
from loramux_server.lora.segments import Residence
from loramux_server.models.base_model import BaseModel
from loramux_server.models.decoder_model import prepare
from loramux_server.models.loading import load_base_model
from loramux_server.models.packed_linear import PackedLinear
from loramux_server.models.servable import UnservableModelError
from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.sampling import Sampling
from loramux_server.wire.weight_format import WeightFormat
from tests.support.engine import InlineExecutor
from tests.support.models import save_model, tiny_model
from tests.support.sinks import gpt_oss


def groups(model: BaseModel) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for name, place in model.places.items():
        found.setdefault(place.group, []).append(name)
    return found


def test_layers_with_one_input_are_packed() -> None:
    model = prepare(tiny_model("llama"))
    first = [names for names in groups(model).values() if "layers.0." in names[0]]
    assert [[name.rpartition(".")[2] for name in names] for names in first] == [
        ["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"],
    ]  # fmt: skip


def test_no_layer_outlives_its_packed_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a model would take its memory twice while it is loaded."""
    model = tiny_model("llama", num_hidden_layers=8)
    layers = weakref.WeakSet(layer for layer in model.modules() if isinstance(layer, nn.Linear))
    alive: list[int] = []
    pack = PackedLinear.__init__

    def count(self: PackedLinear, members: list[nn.Linear], *rest: Any) -> None:
        alive.append(len(layers))
        pack(self, members, *rest)

    monkeypatch.setattr(PackedLinear, "__init__", count)
    prepare(model)
    assert not layers
    assert alive == sorted(alive, reverse=True)
    assert alive[-1] <= 4


def test_the_output_layer_is_not_packed() -> None:
    model = prepare(tiny_model("gpt2"))
    assert not any("lm_head" in name for name in model.places)
    assert {name.rpartition(".")[2] for name in model.places} == {"c_attn", "c_proj", "c_fc"}


def test_making_ready_changes_no_logit() -> None:
    tokens = torch.arange(3, 20)
    plain = tiny_model("qwen2")(input_ids=tokens[None]).logits[0]
    model = prepare(tiny_model("qwen2"))
    runner = ModelRunner(
        model, choose_backend("torch", model.device), num_slots=64, adapter_memory=1 << 20
    )
    logits = runner.run(batch_of(tokens.tolist()))
    torch.testing.assert_close(logits[0], plain[-1], rtol=1e-5, atol=1e-5)


def batch_of(tokens: list[int], digest: str | None = None) -> Batch:
    request = Request(0, tokens, None, Sampling(max_tokens=1, seed=0), blocks=[2, 1, 3])
    if digest:
        from tests.support.fake import fake_source

        request.adapter = fake_source(1, 8)

    def residence(_: str) -> Residence:
        import numpy as np

        ranks, scales = np.full((8, 3), 8, np.int32), np.ones((8, 3), np.float32)
        return Residence(0, 8, WeightFormat.FLOAT32, ranks, scales)

    return Batch.build([Chunk(request, 0, len(tokens))], residence, 8)


class TouchedError(Exception):
    """Adapter code ran."""


def test_a_batch_of_the_base_runs_no_adapter_code() -> None:
    def explode(*_: object) -> None:
        raise TouchedError

    model = prepare(tiny_model("llama"))
    backend = replace(DEFINITIONS, add_lora=explode)  # type: ignore[arg-type]
    runner = ModelRunner(model, backend, num_slots=64, adapter_memory=1 << 20)
    runner.run(batch_of([5, 6, 7]))
    with pytest.raises(TouchedError):
        runner.run(batch_of([5, 6, 7], digest="x"))


SHAPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ENCODER: dict[str, Any] = {
    name: value for name, value in SHAPE.items() if name != "num_key_value_heads"
}
SEQ2SEQ: dict[str, Any] = {
    "vocab_size": 64, "d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2,
    "decoder_ffn_dim": 16, "encoder_layers": 2, "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
LLAMA4: dict[str, Any] = {
    **SHAPE, "intermediate_size_mlp": 48, "head_dim": 8, "num_local_experts": 4,
    "attention_chunk_size": 64, "floor_scale": 128,
}  # fmt: skip


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        *(
            pytest.param(kind(**SEQ2SEQ), "does not take position_ids", id=kind.model_type)
            for kind in (
                BartConfig, MBartConfig, MarianConfig, BlenderbotSmallConfig, PegasusConfig
            )
        ),
        *(
            pytest.param(kind(**ENCODER, is_decoder=False), "than in its own", id=kind.model_type)
            for kind in (RobertaConfig, XLMRobertaConfig, ElectraConfig)
        ),
        pytest.param(DogeConfig(**SHAPE), "passes its own attention mask", id="own-mask"),
        pytest.param(DiffLlamaConfig(**SHAPE), "calls attention twice", id="two-in-a-layer"),
        pytest.param(
            RecurrentGemmaConfig(**SHAPE, block_types=["recurrent", "attention"]),
            r"only layers \[1\] of 2 use .* the others keep no state in its cache",
            id="a-state-of-its-own",
        ),
        pytest.param(
            MiniMaxConfig(**SHAPE, head_dim=8, layer_types=["linear_attention", "full_attention"]),
            "uses get_linear_cache of its cache",
            id="a-cache-of-its-own",
        ),
        pytest.param(
            BloomConfig(vocab_size=32, hidden_size=16, n_layer=2, n_head=2),
            "attention interface",
            id="alibi",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_by_name(config: PreTrainedConfig, reason: str) -> None:
    model = random_model(config)
    with pytest.raises(UnservableModelError, match=reason):
        prepare(model)


def test_sinks_that_not_every_head_has_are_refused() -> None:
    model = gpt_oss()
    for layer in model.model.layers:
        layer.self_attn.sinks.data = torch.zeros(1)
    with pytest.raises(
        UnservableModelError, match=r"shape \[1\]; expected \[4\], one for each head"
    ):
        prepare(model)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(Llama4TextConfig(**LLAMA4, interleave_moe_layer_step=1), id="llama4"),
        pytest.param(PhimoeConfig(**SHAPE, num_local_experts=4), id="phimoe"),
    ],
)
def test_a_router_with_a_forward_of_its_own_is_left_alone(config: PreTrainedConfig) -> None:
    model = prepare(random_model(config))
    assert not any("router" in name or "gate" in name.split(".")[-2:] for name in model.places)
    assert any(name.endswith("q_proj") for name in model.places)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_what_a_folder_lacks_is_not_made_up(name: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "base")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UnservableModelError, match=f"lacks the weight {name} of Llama"):
        load_base_model(str(folder), device="cpu")


def test_a_model_without_a_layer_of_logits_is_served_where_that_is_tied(tmp_path: Path) -> None:
    tiny_model("llama").model.save_pretrained(str(tmp_path))
    with pytest.raises(UnservableModelError, match=r"lacks the weight lm_head.weight"):
        load_base_model(str(tmp_path), device="cpu")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert load_base_model(str(tmp_path), device="cpu").replaceable.vocabulary.is_tied


def test_a_model_that_asks_in_which_format_its_layers_are_is_served() -> None:
    config = HunYuanMoEV1Config(
        **SHAPE, head_dim=8, num_experts=4, moe_topk=[2, 2], num_shared_expert=[1, 1],
    )  # fmt: skip
    assert "model.layers.1.mlp.gate.wg" in prepare(random_model(config)).places


def test_weights_are_pages_of_their_file_until_they_come_to_their_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the host would need room for all that a GPU is to hold."""
    folder = tmp_path / "base"
    tiny_model("llama").to(torch.bfloat16).save_pretrained(str(folder))
    to, found = PreTrainedModel.to, []

    def watched(module: PreTrainedModel, *arguments: Any, **options: Any) -> PreTrainedModel:
        maps = Path("/proc/self/maps").read_text().splitlines()
        places = [line.split()[0].split("-") for line in maps if line.endswith("safetensors")]
        pages = [range(int(start, 16), int(end, 16)) for start, end in places]
        for parameter in module.parameters():
            found.append(any(parameter.data_ptr() in page for page in pages))
        return to(module, *arguments, **options)

    monkeypatch.setattr(PreTrainedModel, "to", watched)
    load_base_model(str(folder), dtype="bfloat16")
    assert found and all(found)
    found.clear()
    load_base_model(str(folder), dtype="float32")
    assert found and not any(found)


def test_a_generation_config_is_the_base_s_another_or_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, other = save_model(tmp_path / "base", tokenizer=False), tmp_path / "other"
    (folder / "generation_config.json").write_text('{"do_sample": true, "top_k": 7, "min_p": 0.5}')
    other.mkdir()
    (other / "generation_config.json").write_text('{"top_p": 0.5, "num_beams": 4}')
    for source, wanted in (
        ("auto", {"top_k": 7, "min_p": 0.5}),
        ("none", {}),
        ("vllm", {}),
        (str(other), {"top_p": 0.5}),
    ):
        base = load_base_model(str(folder), device="cpu", generation_config=source)
        assert base.generation == wanted
    assert [record.getMessage() for record in caplog.records] == [
        "generation_config.json: not applied: num_beams"
    ]
    (other / "generation_config.json").write_text('{"top_p": 3}')
    for source, message in (
        (str(other), "top_p is 3; expected a number above 0 to 1; fix the file, or start with"),
        ("absent", "--generation-config is 'absent'; expected auto, none, or a folder with a gen"),
    ):
        with pytest.raises(UnservableModelError, match=message):
            load_base_model(str(folder), device="cpu", generation_config=source)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnservableModelError, match="cannot load a base model"):
        load_base_model(str(tmp_path))


@pytest.mark.parametrize("path", ["/absent", "./absent", "../absent", "~/absent", "a/b/absent"])
def test_a_folder_that_is_not_there_is_not_looked_for_at_a_hub(path: str) -> None:
    with pytest.raises(UnservableModelError, match=f"from '{path}': no such folder"):
        load_base_model(path)


@pytest.mark.parametrize("path", [".", "./", "../small", "../small/", "../small/.", "sub/.."])
def test_a_model_has_the_name_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    folder = tmp_path / "small"
    random_model(LlamaConfig(**SHAPE)).save_pretrained(str(folder))
    (folder / "sub").mkdir()
    monkeypatch.chdir(folder)
    assert load_base_model(path, device="cpu").name == "small"


@pytest.mark.parametrize("device", ["foo", "cuda:99", "meta", "cpu:x"])
def test_a_device_that_is_not_there_is_refused_by_name(tmp_path: Path, device: str) -> None:
    with pytest.raises(UnservableModelError, match=f"device '{device}' cannot be used"):
        load_base_model(str(tmp_path), device=device)


def test_kernels_that_do_not_run_on_the_device_are_refused() -> None:
    model = replace(prepare(tiny_model("llama")), device=torch.device("cuda"))
    config = EngineConfig(model="", kernels="cpu", kv_memory=1 << 20)
    with pytest.raises(UnservableModelError, match="kernels 'cpu' do not run on device cuda"):
        build_engine(model, config, InlineExecutor(), lambda: None)


@pytest.mark.parametrize(("architecture", "served"), [("llama", 256), ("gpt2", 0), ("opt", 0)])
def test_more_context_than_the_model_has_is_reported_or_refused(
    architecture: str, served: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = prepare(tiny_model(architecture))
    for asked in (0, 100, 256):
        config = EngineConfig(model="", max_context=asked)
        assert served_context(model, config) == (asked or 256)
    assert not caplog.text
    config = EngineConfig(model="", max_context=257)
    if served:
        assert served_context(model, config) == served
        (record,) = caplog.records
        assert (
            record.getMessage()
            == f"--max-context 257 exceeds the context of {model.name}; using 256"
        )
    else:
        with pytest.raises(
            UnservableModelError, match=r"is 257, but .* has embeddings for 256 positions"
        ):
            served_context(model, config)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"kv_memory": 1 << 40}, "--kv-memory of 1,024.00 GiB does not fit"),
        ({"adapter_memory": 3 << 40}, "--adapter-memory of 3,072.00 GiB does not fit"),
        (
            {"kv_memory": 1 << 50, "adapter_memory": 1 << 20},
            "--kv-memory of 1,048,576.00 GiB and --adapter-memory of 0.00 GiB do not fit",
        ),
    ],
)
@pytest.mark.parametrize("whole", [0, 1 << 60], ids=["known", "found out"])
def test_more_memory_than_there_is_is_refused_with_what_is_free(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, int], said: str, whole: int
) -> None:
    if whole:  # to the allocator it is left then
        monkeypatch.setattr("loramux_server.engine.fit.all_memory", lambda: whole)
    model, config = prepare(tiny_model("llama")), structs.replace(EngineConfig(model=""), **asked)
    with pytest.raises(NoRoomError, match=rf"^{said} on device cpu, which has [\d.]+ GiB free$"):
        build_engine(model, config, InlineExecutor(), lambda: None)


def test_the_fingerprint_distinguishes_weights_and_tokenizers(tmp_path: Path) -> None:
    with_tokenizer = load_base_model(str(save_model(tmp_path / "a")))
    again = load_base_model(str(save_model(tmp_path / "b")))
    without = load_base_model(str(save_model(tmp_path / "c", tokenizer=False)))
    other = prepare(tiny_model("llama", seed=1, vocab_size=259))
    assert with_tokenizer.fingerprint == again.fingerprint
    assert len({m.fingerprint for m in (with_tokenizer, without, other)}) == 3
    assert without.text.tokenizer_json is None
    assert with_tokenizer.eos_token_ids == [2]


@pytest.mark.parametrize(
    ("config", "length"),
    [
        pytest.param(
            Llama4TextConfig(**LLAMA4, moe_layers=[], attn_temperature_tuning=False), 64,
            id="chunked-attention",
        ),
        pytest.param(
            Llama4TextConfig(**LLAMA4, moe_layers=[], no_rope_layers=[0, 0]), 127,
            id="scale-by-position",
        ),
        pytest.param(
            Qwen2MoeConfig(
                **SHAPE, num_experts=4, use_sliding_window=True, sliding_window=32,
                max_window_layers=2,
            ),
            32,
            id="window-in-the-mask-of-a-layer",
        ),
        pytest.param(
            PhimoeConfig(**SHAPE, num_local_experts=4, sliding_window=32), 32,
            id="window-in-every-mask",
        ),
        pytest.param(MistralConfig(**SHAPE, sliding_window=32), 256, id="window"),
    ],
)  # fmt: skip
def test_the_context_ends_where_a_mask_is_more_than_causal(
    config: PreTrainedConfig, length: int
) -> None:
    assert prepare(random_model(config)).context_length == length


def test_frequencies_that_change_with_the_batch_are_kept_out_of_reach() -> None:
    factors = [1.0] * 4
    config = Phi3Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=512,
        original_max_position_embeddings=64, pad_token_id=0, eos_token_id=2,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 1e4, "long_factor": factors,
            "short_factor": factors, "original_max_position_embeddings": 64,
        },
    )  # fmt: skip
    assert prepare(AutoModelForCausalLM.from_config(config)).context_length == 64
    plain = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    assert prepare(AutoModelForCausalLM.from_config(plain)).context_length == 512
