"""Train the demo model: a tiny base model, then one LoRA adapter for each task.

Run ``python -m examples.demo_model.train`` in the root of the repository. ``--only`` runs one
stage; ``--adapter`` trains a single adapter on the existing base model.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from .documents import Batch, adapter_examples, base_documents, batches
from .model import answers, new_model, new_tokenizer
from .tasks import TASKS, Task

PACKAGE_DATA = Path(__file__).parents[2] / "server" / "loramux_server" / "demo"
BASE_NAME = "loramux-demo"
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Recipe:
    """How one adapter is trained: its shape, as arguments of LoraConfig, and its steps."""

    lora: dict[str, Any]
    steps: int = 200
    rate: float = 4e-3


RECIPES = {
    "reverse": Recipe({"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}, 300),
    "upper": Recipe({"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}),
    "sort": Recipe(
        {"r": 32, "lora_alpha": 32, "target_modules": "all-linear", "use_rslora": True}, 400
    ),
    "double": Recipe({"r": 8, "lora_alpha": 16, "target_modules": ATTENTION}),
    "mask": Recipe({"r": 4, "lora_alpha": 8, "target_modules": MLP}),
    "caesar": Recipe({"r": 16, "lora_alpha": 32, "target_modules": MLP}, 300),
    "piglatin": Recipe({"r": 12, "lora_alpha": 24, "target_modules": "all-linear"}, 300),
    "plural": Recipe(
        {
            "r": 8,
            "lora_alpha": 16,
            "target_modules": "all-linear",
            "rank_pattern": {"down_proj": 16, "k_proj": 4},
            "alpha_pattern": {"down_proj": 32, "k_proj": 8},
        },
        300,
    ),
    "acronym": Recipe({"r": 8, "lora_alpha": 16, "target_modules": ATTENTION}),
    "last": Recipe({"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}),
    "title": Recipe({"r": 6, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj", "o_proj"]}),
    "sentiment": Recipe({"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}, 400),
}


def train_base(folder: Path, steps: int) -> None:
    """Train the base model from scratch and save it, in half precision, with its tokenizer."""
    torch.manual_seed(0)
    rng = Random("base")
    tokenizer = new_tokenizer()
    model = new_model()
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=2e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    source = batches(base_documents(rng), tokenizer, 5000, rng)
    fit(model, source, optimizers, steps, "base")
    model.half().save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save the tokenizer under the class name that transformers 4 also supports."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content.pop("backend", None)
    content["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def train_adapter(name: str, base: Path, folder: Path) -> None:
    """Train the adapter for one task on the frozen base model and save it as PEFT does."""
    torch.manual_seed(0)
    rng = Random(name)
    model, tokenizer = load_base(base)
    recipe = RECIPES[name]
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **recipe.lora))
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.0)
    source = batches(adapter_examples(TASKS[name], rng), tokenizer, 2500, rng)
    fit(model, source, [optimizer], recipe.steps, name)
    model.peft_config["default"].base_model_name_or_path = BASE_NAME
    for weight in weights:
        weight.data = weight.data.half()
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def fit(
    model: torch.nn.Module,
    source: Iterator[Batch],
    optimizers: list[torch.optim.Optimizer],
    steps: int,
    label: str,
) -> None:
    """Train for a number of steps, with a warm-up and a cosine decay of the learning rate."""
    warm_up = max(10, steps // 20)

    def scale(step: int) -> float:
        return min((step + 1) / warm_up, 1.0) * 0.5 * (1 + math.cos(math.pi * step / steps))

    schedules = [torch.optim.lr_scheduler.LambdaLR(one, scale) for one in optimizers]
    began = time.monotonic()
    losses: list[float] = []
    model.train()
    for step in range(1, steps + 1):
        ids, labels = next(source)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        losses.append(loss.item())
        if step % 100 == 0:
            loss_now, seconds = sum(losses) / len(losses), time.monotonic() - began
            print(f"{label}: step {step}, loss {loss_now:.4f}, {seconds:.0f} s", flush=True)
            losses.clear()


def load_base(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The saved base model, in float32, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, task: Task) -> float:
    """The percentage of held-out examples that the model answers exactly."""
    examples = task.held_out(100)
    given = answers(model, tokenizer, [f"{text} ->" for text, _ in examples])
    right = sum(got == f" {answer}" for got, (_, answer) in zip(given, examples, strict=True))
    return 100 * right / len(examples)


def print_table(out: Path, names: list[str]) -> None:
    """Print how well the base model and each adapter do on the held-out examples."""
    print(f"{'adapter':<12}{'base %':>8}{'adapter %':>11}")
    for name in names:
        model, tokenizer = load_base(out / "base")
        before = score(model, tokenizer, TASKS[name])
        model = PeftModel.from_pretrained(model, out / "adapters" / name)
        print(f"{name:<12}{before:>8.0f}{score(model, tokenizer, TASKS[name]):>11.0f}", flush=True)


def write_held_out(path: Path) -> None:
    """Write the held-out examples of every adapter as JSON."""
    content = {
        name: {
            "description": TASKS[name].description,
            "examples": [[f"{text} ->", answer] for text, answer in TASKS[name].held_out(100)],
        }
        for name in RECIPES
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run the stages that the command line asks for."""
    parser = argparse.ArgumentParser(description="Train the demo model and its adapters.")
    parser.add_argument("--out", type=Path, default=PACKAGE_DATA, help="folder to write to")
    parser.add_argument("--only", choices=("base", "adapters", "table"), help="one stage")
    parser.add_argument("--adapter", choices=sorted(RECIPES), help="train this adapter only")
    parser.add_argument("--base-steps", type=int, default=2000, help="training steps of the base")
    options = parser.parse_args()
    began = time.monotonic()
    out: Path = options.out
    names = [options.adapter] if options.adapter else list(RECIPES)
    out.mkdir(parents=True, exist_ok=True)
    if options.only == "base" or not (options.only or options.adapter):
        train_base(out / "base", options.base_steps)
    if options.only in (None, "adapters"):
        for name in names:
            train_adapter(name, out / "base", out / "adapters" / name)
        write_held_out(out / "held_out.json")
    if options.only != "base":
        print_table(out, names)
    print(f"{(time.monotonic() - began) / 60:.1f} minutes in total")


if __name__ == "__main__":
    main()
