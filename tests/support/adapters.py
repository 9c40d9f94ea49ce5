"""Random LoRA adapters, made and saved by PEFT, and what PEFT itself computes with them."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from loramux_adapters import sources
from loramux_adapters.known_layers import KnownLayers
from loramux_adapters.package import digest_of, read_package
from loramux_server.lora.edits import num_edit_bytes
from loramux_server.store.check import num_bytes
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.weight_format import format_of


def save_adapter(
    model: PreTrainedModel, folder: Path, *, seed: int, strength: float = 0.5, **config: Any
) -> Path:
    """Save a random adapter for `model` with the LoraConfig fields `config` to `folder`."""
    torch.manual_seed(seed)
    config = {"task_type": "CAUSAL_LM", "init_lora_weights": False, **config}
    with quiet_peft():
        wrapped = get_peft_model(copy.deepcopy(model), LoraConfig(**config))
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if ".lora_" in name:
                weight.normal_(std=strength / weight.shape[1] ** 0.5)
    wrapped.save_pretrained(str(folder))
    return folder


_STD = {"unilora_theta_d": 2.0, "miss_block": 0.08}
"""Part of a parameter's name -> how strong it is made: it is divided by how many entries have it,
or repeated."""


def save_tuned(model: PreTrainedModel, config: PeftConfig, folder: Path, *, seed: int) -> PeftModel:
    """Save a random adapter for `model`, and return it as PEFT loads it."""
    torch.manual_seed(seed)
    with quiet_peft():
        wrapped = get_peft_model(copy.deepcopy(model), config)
        with torch.no_grad():
            for name, weight in wrapped.named_parameters():
                if weight.requires_grad:
                    std = next((_STD[part] for part in _STD if part in name), None)
                    weight.add_(torch.randn_like(weight) * (std or 0.5 / weight.shape[-1] ** 0.5))
        wrapped.save_pretrained(str(folder))
        return PeftModel.from_pretrained(copy.deepcopy(model), str(folder)).eval()


def pack_source(
    folder: Path, output: Path, vocab_size: int = 0, base: KnownLayers | None = None
) -> AdapterSource:
    """Pack the PEFT folder and return what the engine is told about the package."""
    with output.open("w+b") as file:
        sources.pack_source(folder, file, base=base)
    return source_of(output, vocab_size)


def source_of(path: Path, vocab_size: int = 0) -> AdapterSource:
    """Return what the engine is told about the package at `path`."""
    with path.open("rb") as file:
        package = read_package(file, path.stat().st_size)
        digest = digest_of(file)
    item_bytes = format_of(package).item_bytes
    virtual = package.virtual
    return AdapterSource(
        digest, str(path), package.rank, num_bytes(package), item_bytes, num_edit_bytes(package),
        vocab_size=vocab_size, invocation=package.contents.invocation,
        virtual_tokens=virtual.count if virtual else 0,
        has_cache=bool(virtual and virtual.has_cache),
        task=package.head.task if package.head else None,
    )  # fmt: skip


@dataclass(frozen=True)
class Expected:
    """What PEFT computes for one prompt."""

    tokens: list[int]
    logprobs: torch.Tensor
    """[number of tokens, vocabulary]."""


def with_adapter(model: PreTrainedModel, folder: Path | None) -> torch.nn.Module:
    """Return a copy of `model` as PEFT loads it with the adapter in `folder`."""
    wrapped: torch.nn.Module = model
    if folder is not None:
        with quiet_peft():
            wrapped = PeftModel.from_pretrained(copy.deepcopy(model), str(folder))
    return wrapped.eval()


@torch.inference_mode()
def expected(model: torch.nn.Module, prompt: Sequence[int], num_tokens: int) -> Expected:
    """Return the greedy continuation of `prompt`, one whole forward pass for each token."""
    tokens: list[int] = []
    rows = []
    # Multitask prompt tuning wants to know of which task a prompt is.
    is_multitask = isinstance(model, PeftModel) and "MULTITASK" in str(model.peft_type)
    task = {"task_ids": torch.tensor([0])} if is_multitask else {}
    for _ in range(num_tokens):
        ids = torch.tensor([[*prompt, *tokens]])
        logits = model(input_ids=ids, use_cache=False, **task).logits[0, -1]
        rows.append(torch.log_softmax(logits.float(), -1))
        tokens.append(int(logits.argmax()))
    return Expected(tokens, torch.stack(rows))


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence PEFT's advice about fan_in_fan_out, tied weights and the like."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
