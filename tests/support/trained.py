"""Adapters that are trained on examples and pushed to a server, and what PEFT makes of them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel

from loramux import Client
from loramux_adapters import open_package
from loramux_adapters.train.methods import Shape
from loramux_adapters.train.plan import Plan
from loramux_adapters.train.run import train
from loramux_adapters.unpack import unpack
from tests.support.adapters import quiet_peft

SEVERAL: list[dict[str, Any]] = [
    {"text": "hot", "labels": ["warm", "day"]}, {"text": "none", "labels": []},
    {"text": "cold day", "labels": ["cold", "day"]}, {"text": "day", "labels": ["day"]},
] * 4  # fmt: skip
SCORED: list[dict[str, Any]] = [
    {"text": text, "pair": "b", "score": score}
    for text, score in (("hot", 3), ("cold", 2.25), ("mild", 2.5), ("warm", 2.75))
] * 4


@dataclass
class Trainer:
    """A base, a client of its server, and a folder for what is trained."""

    base: Path
    client: Client
    folder: Path

    @property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.base)

    def push(self, name: str, lines: list[dict[str, Any]], **plan: Any) -> Path:
        """Train, push the package, and return the folder that it unpacks to."""
        data, package = self.folder / f"{name}.jsonl", self.folder / f"{name}.safetensors"
        data.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        options = {
            "epochs": 2, "learning_rate": 0.03, "batch_size": 4, "eval_share": 0.0, "threads": 1,
            "shape": Shape(method=plan.pop("method", "lora"), rank=3), **plan,
        }  # fmt: skip
        with package.open("w+b") as file:
            train(Plan(base=self.base, base_name="tiny", data=data, **options), file)
        self.client.adapters.upload(name, package)
        with open_package(package) as (file, found):
            unpack(file, found, self.folder / name)
        return self.folder / name

    def tuned(self, kind: Any, folder: Path, **options: Any) -> PeftModel:
        """Return what PEFT loads of a folder, on what transformers loads of the base."""
        model = kind.from_pretrained(self.base, **options)
        return adapted(model, folder)


def adapted(model: PreTrainedModel, folder: Path) -> PeftModel:
    with quiet_peft():
        return PeftModel.from_pretrained(model, str(folder)).eval()
