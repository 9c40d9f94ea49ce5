"""One base model, and texts for many adapters in one mixed batch on it."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from loramux_adapters import PackageError
from loramux_adapters.base import BaseFolder
from loramux_adapters.sources import pack_source
from loramux_server.models.base_model import BaseModel
from loramux_server.store.check import check_package
from loramux_server.store.served_base import ServedBase
from loramux_server.wire.adapter_source import AdapterSource
from tests.support.adapters import Expected, source_of
from tests.support.engine import Harness


@dataclass(frozen=True)
class Cell:
    """What was found of one method on one base."""

    alone: float
    """Largest difference of a number from PEFT with the adapter alone."""
    is_same: bool | None = None
    """Whether the greedy tokens, or the likeliest labels, are those of PEFT alone; None where there
    are none."""
    merged: float | None = None
    """Largest difference from the merged model; None where PEFT does not merge it, NaN where what
    it merges is not what it computed before."""

    def beside(self, other: "Cell") -> "Cell":
        """Return what was found of this text and another."""
        both = None if self.is_same is None else bool(self.is_same and other.is_same)
        return replace(self, alone=max(self.alone, other.alone), is_same=both)


@dataclass(frozen=True)
class Refusal:
    """What the server says of a method that it does not serve on a base."""

    reason: str


Found = Cell | Refusal | None
"""None is a method of which PEFT fails, or which changes nothing there."""


class Text(ABC):
    """A text, and what PEFT makes of it."""

    @abstractmethod
    def submit(self, harness: Harness, adapter: AdapterSource) -> int:
        """Ask for it, and return the number of the request."""

    @abstractmethod
    def cell(self, harness: Harness, number: int) -> Cell:
        """Return how far what came is from what PEFT makes of it."""


class Column:
    """A base, what is asked of it, and what was found of each method."""

    kernels = "cpu"
    """With which operations all columns are computed."""

    def __init__(
        self, model: PreTrainedModel | BaseModel, folder: Path, base: BaseFolder | None = None
    ) -> None:
        """Begin without methods.

        Args:
            model: The base as it is served.
            folder: Where adapters are put.
            base: The base's own folder, which some adapters are packed with.
        """
        self._harness = Harness(
            model, kernels=self.kernels, rows=8192, num_blocks=8000, max_batch_tokens=8192,
            max_running=512,
        )  # fmt: skip
        self._folder = folder
        self._base = base
        self._served = ServedBase.of(self._harness.info, max_host_bytes=1 << 30)
        self._found: dict[str, Found] = {}
        self._asked: list[tuple[str, AdapterSource, Text]] = []

    def add(self, method: str, make: Callable[[Path, int], Sequence[Text]]) -> None:
        """Ask for the texts of a method.

        Args:
            method: What it is called.
            make: Saves an adapter in a folder by a seed, and returns texts as PEFT has them.
        """
        seed = len(self._found)
        saved = self._folder / f"adapter-{seed}"
        self._found[method] = None
        try:
            texts = make(saved, seed)
        except Exception as error:  # whatever PEFT says of a method that the base cannot have
            print(f"{method}: {type(error).__name__}: {error}", file=sys.stderr)
            return
        try:
            source = self._packed(saved, self._folder / f"{seed}.safetensors")
        except PackageError as error:
            self._found[method] = Refusal(str(error))
            return
        self._asked += [(method, source, text) for text in texts]

    def run(self) -> dict[str, Found]:
        """Compute all texts in one batch, and return what was found of each method."""
        for _, source, text in self._asked:  # so that all adapters are there
            text.submit(self._harness, source)
        self._harness.run()
        numbers = [text.submit(self._harness, source) for _, source, text in self._asked]
        self._harness.run()
        assert not self._harness.failures, self._harness.failures
        num_adapters = len({source.digest for _, source, _ in self._asked})
        batches = [report.batch for report in self._harness.reports if report.batch]
        assert max(batch.adapters for batch in batches) == num_adapters
        for (method, _, text), number in zip(self._asked, numbers, strict=True):
            cell, before = text.cell(self._harness, number), self._found[method]
            self._found[method] = before.beside(cell) if isinstance(before, Cell) else cell
        return self._found

    def _packed(self, saved: Path, package: Path) -> AdapterSource:
        with package.open("w+b") as file:
            pack_source(saved, file, base=self._base)
            file.flush()
            check_package(file, package.stat().st_size, self._served)
        return source_of(package)


@dataclass(frozen=True)
class Read(Text):
    """A text that a head reads."""

    tokens: list[int]
    logits: torch.Tensor
    """[labels], or [number of tokens, labels]."""

    def submit(self, harness: Harness, adapter: AdapterSource) -> int:
        return harness.submit(self.tokens, adapter)

    def cell(self, harness: Harness, number: int) -> Cell:
        ours = harness.logits(number, self.logits.shape[-1]).reshape(self.logits.shape)
        same = torch.equal(ours.argmax(-1), self.logits.argmax(-1))
        return Cell(float((ours - self.logits).abs().max()), same)


def distance(harness: Harness, number: int, wanted: Expected) -> float:
    """Return the largest difference of a log-probability in what was written."""
    worst = 0.0
    for token, logprob_V in zip(harness.tokens[number], wanted.logprobs, strict=True):
        assert token.logprobs is not None
        ours_V = torch.full_like(logprob_V, float("nan"))
        for top, logprob in token.logprobs.top:
            ours_V[top] = logprob
        worst = max(worst, float((ours_V - logprob_V).abs().max()))
    return worst


def demand_change(adapted: torch.Tensor, plain: torch.Tensor) -> None:
    """Demand that an adapter changes what comes of a text, without which nothing is compared.

    Raises:
        ValueError: It does not.
    """
    if torch.allclose(adapted, plain, rtol=0, atol=1e-3):
        raise ValueError("with PEFT it changes nothing")
