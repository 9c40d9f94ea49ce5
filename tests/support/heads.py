"""A server of the demo's base with adapters that have heads, as PEFT saved them."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from loramux_adapters.head import Task
from loramux_server.commands.demo import DEMO
from tests.support.adapters import save_tuned
from tests.support.classifiers import classifier, expected_logits
from tests.support.collector import Collector
from tests.support.embedders import bare, expected_states, save_embedder, write_sentence_files
from tests.support.server import RunningServer

LABELS = {"mood": ["bad", "so-so", "good"], "tags": ["O", "B", "I", "X", "Y"]}
HEADS = {
    "mood": (Task.SEQUENCE, 3),
    "topics": (Task.SEQUENCE, 4),
    "grade": (Task.SEQUENCE, 1),
    "tags": (Task.TOKENS, 5),
    "overflows": (Task.SEQUENCE, 2),
    "finder": (Task.SPANS, 2),
}
"""Adapter -> its task, and how many outputs it has."""
METHODS: dict[str, type[PeftConfig]] = {
    "topics": LoHaConfig, "tags": LoKrConfig, "grade": VeraConfig, "finder": LoHaConfig,
}  # fmt: skip
"""Those that are no LoRA when PEFT saves them."""
VIRTUAL: dict[str, type[PeftConfig]] = {"asked": PromptTuningConfig, "keyed": PrefixTuningConfig}
"""Those that embed behind virtual tokens."""
EMBEDDERS = {"vectors": "FEATURE_EXTRACTION", "writer": "CAUSAL_LM"}
"""The same of adapters without a head, whose hidden states are asked for."""


@dataclass
class Served:
    """A server of the demo's base, and the adapters that it has as PEFT loads them."""

    server: RunningServer
    adapters: dict[str, PeftModel]
    tokenizer: Any
    folder: Path
    """Where PEFT saved the adapters."""
    collector: Collector
    base: PreTrainedModel

    def states(self, name: str | None, text: str) -> torch.Tensor:
        model = self.adapters[name] if name else self.base
        return expected_states(model, self.tokenizer(text).input_ids)

    def logits(self, name: str, text: str) -> torch.Tensor:
        return expected_logits(self.adapters[name], self.tokenizer(text).input_ids)


@contextmanager
def serving_heads(folder: Path, server_folder: Path) -> Iterator[Served]:
    """Serve what has heads beside the demo's adapters, which write; both folders are new."""
    base = AutoModelForCausalLM.from_pretrained(DEMO / "base", dtype=torch.float32).eval()
    adapters = {}
    for seed, (name, (task, num_labels)) in enumerate(HEADS.items()):
        common: Any = {"task_type": str(task), "r": 4, "target_modules": ["q_proj", "down_proj"]}
        config = METHODS[name](**common) if name in METHODS else LoraConfig(**common, lora_alpha=8)
        model = classifier(base, task, num_labels)
        adapters[name] = save_tuned(model, config, folder / name, seed=seed)
    for name, kind in EMBEDDERS.items():
        model = bare(base) if kind == "FEATURE_EXTRACTION" else base
        adapters[name] = save_embedder(
            model, folder / name, seed=9, task_type=kind, r=4,
            target_modules=["q_proj", "down_proj"],
        )  # fmt: skip
    for name, virtual in VIRTUAL.items():
        config = virtual(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3)
        adapters[name] = save_tuned(bare(base), config, folder / name, seed=4)
    write_sentence_files(folder / "vectors", "mean", normalizes=False)
    for name, labels in LABELS.items():
        config = {"id2label": dict(enumerate(labels))}
        (folder / name / "config.json").write_text(json.dumps(config))
    weights = folder / "overflows" / "adapter_model.safetensors"
    save_file({name: weight * 1e22 for name, weight in load_file(weights).items()}, weights)
    run(
        "pack", str(folder / "topics"), "-o", str(folder / "topics.safetensors"),
        "--labels", "sport,war,art,law", "--problem-type", "multi_label_classification",
    )  # fmt: skip
    shutil.rmtree(folder / "topics")
    shutil.copytree(DEMO / "adapters", folder, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
    with (
        Collector() as collector,
        RunningServer(
            server_folder, DEMO / "base", "--adapters", str(folder),
            "--tracing-endpoint", collector.endpoint, OTEL_BSP_SCHEDULE_DELAY="50",
        ) as server,
    ):  # fmt: skip
        yield Served(server, adapters, tokenizer, folder, collector, base)


def run(*arguments: str) -> str:
    """Return what a command prints that ends well."""
    command = [sys.executable, "-m", "loramux.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout
