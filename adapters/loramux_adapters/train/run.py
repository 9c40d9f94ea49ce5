"""Training: a base, examples and a method become a package, by transformers' Trainer."""

import math
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from loramux_adapters.base import read_base
from loramux_adapters.errors import PackageError, shown
from loramux_adapters.fingerprint import fingerprint
from loramux_adapters.manifest import with_step
from loramux_adapters.packing import Output
from loramux_adapters.sources import pack_source
from loramux_adapters.train.curve import Curve, Progress, Recorder
from loramux_adapters.train.examples import Examples, read_examples
from loramux_adapters.train.methods import peft_config
from loramux_adapters.train.plan import Plan
from loramux_adapters.train.rows import Collator, Row, rows_of, split

WARM_UP = 0.05
"""Share of the steps in which the learning rate rises; it falls as a cosine afterwards."""


def train(plan: Plan, output: Output, progress: Progress = lambda *_: None) -> Curve:
    """Train an adapter by `plan` and write its package, with notes, to `output`.

    Only completions count for the loss. Weights are float32. Equal input gives equal bytes, on one
    machine with one number of threads.

    Raises:
        PackageError: The plan cannot be carried out, or the loss is not finite.
        OSError: A file cannot be read.
    """
    base = read_base(plan.base)
    examples = read_examples(plan.data)
    num_kept = plan.num_kept(len(examples.examples))
    num_learned = len(examples.examples) - num_kept
    config = peft_config(plan.shape, plan.epochs * math.ceil(num_learned / plan.batch_size))
    with _quiet(), _threads(plan.threads), tempfile.TemporaryDirectory(prefix="loramux-") as name:
        folder = Path(name)
        tokenizer, model = _load(plan.base)
        _check_targets(model, plan.shape.targets)
        rows = rows_of(examples, tokenizer, _room(model, config))
        learned, kept = split(rows, num_kept, plan.seed)
        pad = tokenizer.pad_token_id
        collator = Collator(tokenizer.eos_token_id if pad is None else pad)
        set_seed(plan.seed)
        adapted = get_peft_model(model, config)
        curve = _fit(plan, adapted, learned, kept, collator, folder, progress)
        adapted.peft_config["default"].base_model_name_or_path = plan.base_name
        adapted.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
        notes = _notes(plan, examples, learned, curve) | {"base": fingerprint(base)}
        pack_source(folder / "adapter", output, notes=notes)
    return curve


def _load(base: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    return tokenizer, model


def _room(model: PreTrainedModel, config: PeftConfig) -> int:
    """Return how many tokens an example may have: virtual tokens stand before it."""
    num_virtual = getattr(config, "num_virtual_tokens", 0)
    room = int(model.config.max_position_embeddings) - num_virtual
    if room < 2:
        raise PackageError(
            f"rank is {num_virtual}, as many virtual tokens; the base takes "
            f"{model.config.max_position_embeddings} tokens in all",
            "INVALID_FIELD",
        )
    return room


def _fit(
    plan: Plan,
    model: PeftModel,
    learned: list[Row],
    kept: list[Row],
    collator: Collator,
    folder: Path,
    progress: Progress,
) -> Curve:
    """Train `model` in place; `folder` is for what the Trainer writes."""
    curve = Curve()
    trainer = _LossOnly(
        model=model,
        args=_arguments(plan, folder, evaluates=bool(kept)),
        train_dataset=learned,
        eval_dataset=kept or None,
        data_collator=collator,
        callbacks=[Recorder(curve, progress)],
    )
    trainer.remove_callback(PrinterCallback)
    if kept:
        trainer.evaluate()
    trainer.train()
    for point in (*curve.training, *curve.evaluation):
        if not math.isfinite(point.loss):
            raise PackageError(
                f"the loss is {point.loss} at step {point.step}: an lr of {plan.learning_rate:g} "
                "is too high",
                "ADAPTER_NOT_FINITE",
            )
    return curve


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what transformers and PEFT say of each other, and the bars of loading."""
    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
            # Of a layer whose ranks AdaLoRA has masked.
            warnings.filterwarnings("ignore", message=".* LoRA tensor\\(s\\) have invalid shape")
            yield
    finally:
        if was_shown:
            logging.enable_progress_bar()


class _LossOnly(Trainer):  # type: ignore[misc]
    """A Trainer whose evaluation leaves out what AdaLoRA adds to the loss for its ranks."""

    def evaluate(self, *args: object, **kwargs: object) -> dict[str, float]:
        """Return the metrics of the examples kept for evaluation."""
        config = self.model.peft_config["default"]
        weight = getattr(config, "orth_reg_weight", None)
        if weight is None:
            found: dict[str, float] = super().evaluate(*args, **kwargs)
            return found
        config.orth_reg_weight = 0.0
        try:
            found = super().evaluate(*args, **kwargs)
        finally:
            config.orth_reg_weight = weight
        return found


def _arguments(plan: Plan, folder: Path, *, evaluates: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=plan.epochs,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=WARM_UP,
        per_device_train_batch_size=plan.batch_size,
        per_device_eval_batch_size=plan.batch_size,
        eval_strategy="epoch" if evaluates else "no",
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        seed=plan.seed,
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _check_targets(model: PreTrainedModel, targets: tuple[str, ...]) -> None:
    names = [name for name, module in model.named_modules() if not list(module.children())]
    linear = sorted({
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    })  # fmt: skip
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in names):
            raise PackageError(
                f"target {shown(target)} is no layer of the base; it has {', '.join(linear)}",
                "INVALID_FIELD",
            )


def _notes(plan: Plan, examples: Examples, learned: list[Row], curve: Curve) -> dict[str, object]:
    """Return what the package says of its making; no time and no path, so that bytes repeat."""
    step: dict[str, object] = {
        "made_by": "loramux train",
        "data": {"sha256": examples.digest, "examples": len(examples.examples)},
        "arguments": {
            **asdict(plan.shape),
            "targets": list(plan.shape.targets) or "all-linear",
            "epochs": plan.epochs,
            "lr": plan.learning_rate,
            "batch_size": plan.batch_size,
            "seed": plan.seed,
            "eval_share": plan.eval_share,
        },
        "versions": {name: version(name) for name in ("peft", "torch", "transformers")},
    }
    evaluation: dict[str, object] = {
        "train_examples": len(learned),
        "train_loss": curve.training[-1].loss,
    }
    if curve.evaluation:
        evaluation |= {
            "eval_examples": len(examples.examples) - len(learned),
            "eval_loss_before": curve.evaluation[0].loss,
            "eval_loss": curve.evaluation[-1].loss,
        }
    notes = with_step({"evaluation": evaluation}, step)
    return notes | ({"labels": list(examples.labels)} if examples.labels else {})
