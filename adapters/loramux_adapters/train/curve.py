"""Loss curves of a training, and the callback that records them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from peft import PeftModel
from transformers import TrainerCallback

Progress = Callable[[int, int, float], None]
"""Called after each step with the steps done, the total number of steps, and the loss."""


@dataclass(frozen=True, slots=True)
class Point:
    """The loss at one step."""

    step: int
    loss: float


@dataclass(slots=True)
class Curve:
    """The losses of one training run."""

    training: list[Point] = field(default_factory=list)
    """After each step, on its batch; with adalora the orthogonality penalty is included."""
    evaluation: list[Point] = field(default_factory=list)
    """Before the first step and after each epoch, on the evaluation split."""
    accuracy: list[float] = field(default_factory=list)
    """For each of these, the share of correct labels, tags or answers; only for heads."""


class _State(Protocol):
    global_step: int
    max_steps: int


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Records the losses that a Trainer logs, and runs AdaLoRA's rank allocation in each step."""

    def __init__(self, curve: Curve, progress: Progress) -> None:
        self._curve = curve
        self._progress = progress

    def on_log(
        self, args: object, state: _State, control: object, logs: dict[str, float], **_: object
    ) -> None:
        """Record a loss."""
        if "eval_loss" in logs:
            self._curve.evaluation.append(Point(state.global_step, logs["eval_loss"]))
            if "eval_accuracy" in logs:
                self._curve.accuracy.append(logs["eval_accuracy"])
        elif "loss" in logs:
            self._curve.training.append(Point(state.global_step, logs["loss"]))
            self._progress(state.global_step, state.max_steps, logs["loss"])

    def on_optimizer_step(
        self, args: object, state: _State, control: object, model: PeftModel, **_: object
    ) -> None:
        """Run AdaLoRA's rank allocation while the gradients still exist."""
        if hasattr(model.base_model, "update_and_allocate"):
            # AdaLoRA needs gradients also of layers that LayerDrop skipped, as in M2M100.
            for parameter in model.parameters():
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            model.base_model.update_and_allocate(state.global_step + 1)
