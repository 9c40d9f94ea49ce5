"""Modules that were trained whole and saved in 16 bits: they rest in these, and lose nothing."""

import copy
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loramux_adapters import Package, read_package
from loramux_server.lora.edits import Edits, num_edit_bytes
from loramux_server.lora.packed import load_packed
from loramux_server.models.base_layers import BaseLayers
from loramux_server.models.base_model import BaseModel
from loramux_server.models.decoder_model import prepare
from loramux_server.wire.adapter_source import AdapterSource
from tests.parity.test_peft import Case, check
from tests.parity.test_saved import TOLERANCE, configs, lora, make, resized_configs, save
from tests.support.adapters import expected, pack_source, quiet_peft, with_adapter
from tests.support.engine import Harness
from tests.support.models import VOCAB

METHODS = ("embeddings", "output", "all of these", "ia3", "lora of embeddings", "dora of both")
FORMATS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def rounded(saved: Path, dtype: torch.dtype) -> tuple[Path, Path]:
    """Round all but low-rank weights of the adapter in `saved`.

    Returns:
        An adapter that has them in 16 bits, and the same in float32.
    """
    narrow, wide = saved.with_name(f"{saved.name}-narrow"), saved.with_name(f"{saved.name}-wide")
    tensors = load_file(saved / "adapter_model.safetensors")
    few = {name: x.to(dtype) if "lora_" not in name else x for name, x in tensors.items()}
    many = {name: x.float() for name, x in few.items()}
    for folder, held in ((narrow, few), (wide, many)):
        folder.mkdir()
        save_file(held, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_bytes((saved / "adapter_config.json").read_bytes())
    return narrow, wide


def packed(base: BaseModel, source: AdapterSource) -> tuple[Package, Edits]:
    """Return what is in the package of `source`, and what it does to `base`."""
    with Path(source.path).open("rb") as file:
        package = read_package(file, Path(source.path).stat().st_size)
    edits = load_packed(Path(source.path), source.digest, BaseLayers(base)).edits
    assert edits is not None
    return package, edits


@pytest.mark.filterwarnings(
    "ignore::RuntimeWarning"  # numpy in the interpreter, of rows that stand for no token
)
@pytest.mark.parametrize(
    ("name", "kernels"),
    [("llama, tied", "cpu"), ("gemma2", "cpu"), ("gpt2", "cpu"), ("llama", "torch"),
     ("llama", "triton")],
)  # fmt: skip
def test_what_was_saved_in_16_bits_is_computed_as_peft_does_and_as_if_it_were_wider(
    name: str, kernels: str, tmp_path: Path
) -> None:
    model, rng = make(name), random.Random(0)
    size, grown = resized_configs(model)["whole"]
    resized = copy.deepcopy(model)
    with quiet_peft():
        resized.resize_token_embeddings(size, mean_resizing=False)
    methods = METHODS if kernels != "triton" else ()  # Triton's interpreter is slow
    asked = [(method, model, configs(model)[method], VOCAB) for method in methods]
    harness = Harness(prepare(copy.deepcopy(model)), kernels=kernels, rows=2048, num_blocks=200)
    for seed, (method, trained, config, vocab) in enumerate(
        [*asked, ("grown", resized, grown, size)]
    ):
        saved = save(trained, config, tmp_path / method, seed)
        folders = rounded(saved, list(FORMATS.values())[seed % 2])
        prompt = [vocab - 1, *(rng.randrange(3, vocab) for _ in range(5))]
        answers = []
        for folder in folders:
            source = pack_source(folder, folder / "package", 0 if vocab == VOCAB else vocab)
            wanted = expected(with_adapter(trained, folder), prompt, 1)
            request = harness.submit(prompt, source, max_tokens=1, num_logprobs=vocab)
            harness.run()
            assert not harness.failures
            check(harness, request, Case(prompt, source, wanted), TOLERANCE)
            answers.append([token.logprobs for token in harness.tokens[request]])
        # Elsewhere torch multiplies, by whose sums it matters where in memory something lies.
        if "llama" in name and kernels == "cpu":
            assert answers[0] == answers[1], method


@pytest.mark.parametrize("kernels", ["cpu", "torch"])
def test_as_many_bytes_are_counted_as_rest_at_most(kernels: str, tmp_path: Path) -> None:
    model = make("gpt2")
    base = prepare(copy.deepcopy(model))
    Harness(base, kernels=kernels, rows=64, num_blocks=10)
    found = configs(model)
    for seed, (method, config) in enumerate(found.items()):
        saved = save(model, config, tmp_path / method, seed)
        for folder in (saved, *rounded(saved, torch.bfloat16)):
            package, edits = packed(base, pack_source(folder, tmp_path / "package"))
            assert edits.num_bytes <= num_edit_bytes(package), (method, folder)


def test_a_saved_output_layer_takes_half_the_memory(tmp_path: Path) -> None:
    model = make("llama")
    base = prepare(copy.deepcopy(model))
    Harness(base, kernels="cpu", rows=64, num_blocks=10)
    config = lora(["q_proj"], modules_to_save=["embed_tokens", "lm_head", "norm"])
    folders = rounded(save(model, config, tmp_path / "a", 0), torch.bfloat16)
    found = [packed(base, pack_source(folder, tmp_path / "package")) for folder in folders]
    width = model.config.hidden_size
    norms = 4 * width * (2 * model.config.num_hidden_layers + 1)
    for (package, edits), item_bytes in zip(found, (2, 4), strict=True):
        matrix, padded = (item_bytes * width * rows for rows in (VOCAB, -(-VOCAB // 32) * 32))
        assert norms + 2 * matrix <= edits.num_bytes <= norms + matrix + padded
        assert num_edit_bytes(package) == norms + 2 * padded
