"""Bottlenecks of the adapters library, and its heads, against what the library computes.

That is kept in files; see `tests/adapters/library/make.py`.
"""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from loramux_adapters.embedding import Pooling
from loramux_server.models.loading import load_base_model
from loramux_server.wire.model_kind import ModelKind
from tests.parity.table.column import Column, Found, Read, Text
from tests.parity.table.decoders import Continued
from tests.parity.table.encoders import Embedded
from tests.parity.table.writers import Answered
from tests.parity.test_bottleneck import LIBRARY, PROMPT
from tests.parity.test_encoder_bottlenecks import ENCODERS, SEQ2SEQ, WRITTEN
from tests.parity.test_library_heads import HEADS, TASKS
from tests.support.adapters import Expected

ARCHITECTURES = ("llama", "gpt2", *ENCODERS, *SEQ2SEQ)


def measure(name: str, folder: Path) -> dict[str, Found]:
    """Return the cells of one column."""
    base = load_base_model(str(LIBRARY / name / "base"))
    column = Column(base, folder)
    texts = {ModelKind.DECODER: _continued, ModelKind.ENCODER: _embedded}.get(base.kind, _answered)
    for method, numbers in load_file(LIBRARY / name / "logits.safetensors").items():
        column.add(method, partial(_copied, LIBRARY / name / method, partial(texts, numbers)))
    heads = [*TASKS] if name == "bert" else [f"class-{name}"] if name == "distilbert" else []
    logits = load_file(HEADS / "logits.safetensors") if heads else {}
    for head in heads:
        read = partial(_read, logits[head])
        column.add(f"head: {head.removesuffix(f'-{name}')}", partial(_copied, HEADS / head, read))
    return column.run()


def _copied(adapter: Path, texts: Callable[[], list[Text]], saved: Path, seed: int) -> list[Text]:
    """Put an adapter in the folder `saved`, whatever `seed`, and return its texts."""
    shutil.copytree(adapter, saved)
    return texts()


def _likeliest(logits_V: torch.Tensor) -> Expected:
    return Expected([int(logits_V.argmax())], logits_V.log_softmax(-1)[None])


def _continued(logits_V: torch.Tensor) -> list[Text]:
    return [Continued(PROMPT, _likeliest(logits_V), None)]


def _embedded(states: torch.Tensor) -> list[Text]:
    return [Embedded(PROMPT, 0, pooling, states) for pooling in Pooling]


def _answered(logits_V: torch.Tensor) -> list[Text]:
    return [Answered(PROMPT, WRITTEN, _likeliest(logits_V))]


def _read(logits: torch.Tensor) -> list[Text]:
    return [Read(PROMPT, logits)]
