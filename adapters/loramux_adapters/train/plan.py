"""The settings of a training run."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from loramux_adapters.errors import PackageError
from loramux_adapters.train.methods import Shape


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The validated settings of one training run."""

    base: Path
    """Folder of the base model and its tokenizer."""
    base_name: str
    """Name of the base in the package."""
    data: Path
    """JSON Lines file with the examples."""
    task: str | None = None
    """A name of `tasks.TASKS`; None to derive it from the lines and the base."""
    shape: Shape = field(default_factory=Shape)
    epochs: int = 3
    learning_rate: float = 1e-3
    batch_size: int = 16
    seed: int = 0
    eval_share: float = 0.1
    """Share of the examples used for evaluation; 0 for none."""
    threads: int | None = None
    """CPU threads; None for torch's default."""

    def __post_init__(self) -> None:
        """Check that all numbers are in range."""
        for name, value, is_right, right in (
            ("epochs", self.epochs, self.epochs >= 1, "1 or more"),
            ("lr", self.learning_rate, 0 < self.learning_rate < math.inf, "above 0"),
            ("batch_size", self.batch_size, self.batch_size >= 1, "1 or more"),
            ("seed", self.seed, 0 <= self.seed < 2**32, "at least 0 and below 2^32"),
            ("threads", self.threads, self.threads is None or self.threads >= 1, "1 or more"),
            ("eval_share", self.eval_share, 0 <= self.eval_share < 1, "at least 0 and below 1"),
        ):
            if not is_right:
                raise PackageError(f"{name} is {value}; it must be {right}", "INVALID_FIELD")

    def num_kept(self, num_examples: int) -> int:
        """Return how many examples are used for evaluation.

        Raises:
            PackageError: It would be all, or none though a share is requested.
        """
        num_kept = round(self.eval_share * num_examples)
        if num_kept == num_examples or (self.eval_share and not num_kept):
            raise PackageError(
                f"an eval_share of {self.eval_share:g} of {num_examples} examples is {num_kept}: "
                "at least one example is needed to evaluate and one to train on, or a share of 0",
                "INVALID_FIELD",
            )
        return num_kept
