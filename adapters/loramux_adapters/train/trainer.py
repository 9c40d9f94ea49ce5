"""Training with transformers' Trainer."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PrinterCallback, Trainer, TrainingArguments

from loramux_adapters.errors import PackageError
from loramux_adapters.head import Task
from loramux_adapters.labels import ProblemType
from loramux_adapters.train.curve import Curve, Progress, Recorder
from loramux_adapters.train.plan import Plan
from loramux_adapters.train.rows import IGNORED, Collator, Row

WARM_UP = 0.05
"""Share of the steps with a rising learning rate; a cosine decay follows."""


def fit(
    plan: Plan,
    model: PeftModel,
    learned: list[Row],
    kept: list[Row],
    collator: Collator,
    folder: Path,
    progress: Progress,
    *,
    task: Task | None = None,
    alone: bool = False,
) -> Curve:
    """Train `model` in place and return its losses.

    Args:
        plan: The settings.
        model: The model with the adapter.
        learned: Rows to train on.
        kept: Rows to evaluate on.
        collator: Makes batches of rows.
        folder: Where the Trainer writes.
        progress: Called after each step.
        task: Task of the model's head, if any; then accuracy is measured, too.
        alone: Whether batches have one example each; gradients accumulate over the plan's batch.

    Raises:
        PackageError: The loss is not finite.
    """
    curve = Curve()
    is_number = model.config.problem_type == ProblemType.REGRESSION
    trainer = _LossOnly(
        model=model,
        args=_arguments(plan, folder, evaluates=bool(kept), task=task, alone=alone),
        train_dataset=learned,
        eval_dataset=kept or None,
        data_collator=collator,
        callbacks=[Recorder(curve, progress)],
        compute_metrics=_accuracy if task and not is_number else None,
        preprocess_logits_for_metrics=_chosen,
    )
    trainer.remove_callback(PrinterCallback)
    if kept:
        trainer.evaluate()
    trainer.train()
    for point in (*curve.training, *curve.evaluation):
        if not math.isfinite(point.loss):
            raise PackageError(
                f"the loss is {point.loss} at step {point.step}: lr {plan.learning_rate:g} "
                "is too high",
                "ADAPTER_NOT_FINITE",
            )
    return curve


class _LossOnly(Trainer):  # type: ignore[misc]
    """A Trainer that evaluates without AdaLoRA's orthogonality penalty."""

    def evaluate(self, *args: object, **kwargs: object) -> dict[str, float]:
        """Return the metrics on the evaluation split."""
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


def _chosen(logits: Sequence[torch.Tensor] | torch.Tensor, labels: object) -> Any:  # noqa: ANN401
    """Return the predicted label, tag, position, or 0/1 vector of labels."""
    if isinstance(labels, tuple):  # begins and ends
        return tuple(each.argmax(-1) for each in logits[: len(labels)])
    first = logits if isinstance(logits, torch.Tensor) else logits[0]
    if isinstance(labels, torch.Tensor) and labels.is_floating_point():  # multi-label
        return (first > 0).float()
    return first.argmax(-1)


def _accuracy(found: Any) -> dict[str, float]:  # noqa: ANN401
    """Return the share of correct labels or tags, or of answers with both ends correct."""
    chosen, labels = (_stacked(each) for each in (found.predictions, found.label_ids))
    right = (chosen == labels).all(0)[labels[0] != IGNORED]
    return {"accuracy": float(right.float().mean())}


def _stacked(value: Any) -> torch.Tensor:  # noqa: ANN401
    """Return one or several numpy arrays as one tensor [arrays, …]."""
    several = value if isinstance(value, tuple) else (value,)
    return torch.stack([torch.as_tensor(each) for each in several])


def _arguments(
    plan: Plan, folder: Path, *, evaluates: bool, task: Task | None, alone: bool
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=plan.epochs,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=WARM_UP,
        per_device_train_batch_size=1 if alone else plan.batch_size,
        per_device_eval_batch_size=1 if alone else plan.batch_size,
        gradient_accumulation_steps=plan.batch_size if alone else 1,
        eval_strategy="epoch" if evaluates else "no",
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        seed=plan.seed,
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        label_names=["start_positions", "end_positions"] if task is Task.SPANS else ["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
    )
