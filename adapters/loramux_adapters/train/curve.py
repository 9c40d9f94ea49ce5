"""How the loss goes while an adapter is trained."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from peft import PeftModel
from transformers import TrainerCallback

Progress = Callable[[int, int, float], None]
"""Called after each step with the steps done, all steps, and the loss."""


@dataclass(frozen=True, slots=True)
class Point:
    """The loss at one moment of the training."""

    step: int
    loss: float


@dataclass(slots=True)
class Curve:
    """The losses of one training."""

    training: list[Point] = field(default_factory=list)
    """Of each step, on its batch; with adalora, what its ranks lack in orthogonality is added."""
    evaluation: list[Point] = field(default_factory=list)
    """Before the first step and after each epoch, on the examples kept for it."""
    accuracy: list[float] = field(default_factory=list)
    """Beside each of these, the share of labels, tags or answers that are right; of heads alone."""


class _State(Protocol):
    global_step: int
    max_steps: int


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Keeps the losses that a Trainer logs, and gives AdaLoRA its turn in each step."""

    def __init__(self, curve: Curve, progress: Progress) -> None:
        self._curve = curve
        self._progress = progress

    def on_log(
        self, args: object, state: _State, control: object, logs: dict[str, float], **_: object
    ) -> None:
        """Keep a loss."""
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
        """Let AdaLoRA judge its ranks while the gradients are still there."""
        if hasattr(model.base_model, "update_and_allocate"):
            for parameter in model.parameters():
                if parameter.requires_grad and parameter.grad is None:  # of a layer that was left
                    parameter.grad = torch.zeros_like(parameter)  # out, as M2M100 does at random
            model.base_model.update_and_allocate(state.global_step + 1)
