"""Random batches on bases that read whole texts, each answer held against PEFT's alone.

Blocks and rank rows are scarce, so that requests start over and adapters come and go; some requests
are paused or given up on the way.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import torch

from loramux_adapters.embedding import Pooling
from loramux_server.models.base_model import BaseModel
from loramux_server.models.loading import load_base_model
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.messages import Pause, Resume
from tests.parity import test_encoders as read
from tests.parity import test_seq2seq as written
from tests.support.adapters import pack_source
from tests.support.classifiers import expected_logits, tasks_of
from tests.support.embedders import vector_of
from tests.support.encoder_heads import config_for, save_headed
from tests.support.encoder_models import SEQ2SEQ, VOCAB, lost_of, own_model, save_encoder_base
from tests.support.engine import Harness

TOLERANCE = 1e-3
"""By which what comes of a text may differ."""
NUM_WRITTEN = 6
ROWS = 96
"""Rank rows, in which not all adapters have room at once."""


class Text(ABC):
    """A text, and what is wanted of it."""

    @abstractmethod
    def submit(self, harness: Harness, tenant: str) -> int:
        """Ask for it, and return the number of the request."""

    @abstractmethod
    def is_right(self, harness: Harness, number: int) -> bool:
        """Return whether what came is what PEFT has."""


class ReadText(Text):
    """One that is embedded, or that a head reads."""

    def __init__(
        self, tokens: list[int], source: AdapterSource | None, wanted: torch.Tensor,
        pooling: Pooling | None = None, second_from: int = 0,
    ) -> None:  # fmt: skip
        self._tokens = tokens
        self._source = source
        self._wanted = wanted
        self._pooling = pooling
        self._second_from = second_from

    def submit(self, harness: Harness, tenant: str) -> int:
        return harness.submit(
            self._tokens, self._source, pooling=self._pooling, second_from=self._second_from,
            tenant=tenant,
        )  # fmt: skip

    def is_right(self, harness: Harness, number: int) -> bool:
        found = harness.logits(number, self._wanted.shape[-1]).view(self._wanted.shape)
        return torch.allclose(found, self._wanted, rtol=0, atol=TOLERANCE)


class WrittenText(Text):
    """One to which another is written."""

    def __init__(self, text: written.Text) -> None:
        self._text = text

    def submit(self, harness: Harness, tenant: str) -> int:
        text = self._text
        return harness.submit(
            [*text.source, *text.begin], text.adapter, num_source=len(text.source), tenant=tenant,
            max_tokens=len(text.expected.tokens), num_logprobs=0,
        )  # fmt: skip

    def is_right(self, harness: Harness, number: int) -> bool:
        found, expected = harness.tokens[number], self._text.expected
        if len(found) != len(expected.tokens):
            return False
        for one, token, row in zip(found, expected.tokens, expected.logprobs, strict=True):
            if one.token != token:  # where two are about as likely, either may come
                return abs(float(row[one.token] - row[token])) <= TOLERANCE
            assert one.logprobs is not None
            if not abs(one.logprobs.chosen - float(row[token])) <= TOLERANCE:
                return False
        return True


class EncoderBatches:
    """The same texts on one base, in one batch after another."""

    def __init__(self, name: str, folder: Path) -> None:
        """Make the base, and its adapters, in `folder`."""
        self._folder = save_encoder_base(name, folder)
        base = self._base()
        texts = _written(base, folder) if name in SEQ2SEQ else _read(name, base, folder)
        self._texts = list(texts)
        self._random = random.Random(0)
        self._harnesses = [
            Harness(self._base(), kernels=kernels, rows=ROWS, num_blocks=num_blocks, max_running=6)
            for kernels, num_blocks in (("cpu", 16), ("torch", 200))
        ]

    def _base(self) -> BaseModel:
        return load_base_model(str(self._folder))

    @property
    def num_preemptions(self) -> int:
        """How often a request had to start over."""
        return sum(harness.engine._scheduler.num_preemptions for harness in self._harnesses)

    @property
    def most_adapters(self) -> int:
        """How many adapters there were in a batch at most."""
        return max(
            report.batch.adapters
            for harness in self._harnesses
            for report in harness.reports
            if report.batch
        )

    def differences(self, count: int) -> Iterator[Text]:
        """Yield what comes out otherwise in one of `count` random batches than PEFT has it."""
        for _ in range(count):
            yield from self._run(self._random.choices(self._texts, k=self._random.randint(2, 14)))

    def _run(self, texts: list[Text]) -> Iterator[Text]:
        choice = self._random
        harness = choice.choice(self._harnesses)
        harness.engine._scheduler._max_batch_tokens = choice.choice([1, 17, 64, 300])
        ids: list[int] = []
        for text in texts:
            ids.append(self._submit(harness, text))
            if choice.random() < 0.2:
                harness.cancel(self._submit(harness, choice.choice(self._texts)))
            for _ in range(choice.choice([0, 0, 0, 1, 3])):
                harness.step()
            if choice.random() < 0.3:
                harness.engine.receive([Pause(choice.choice(ids))])
            if choice.random() < 0.3:
                harness.engine.receive([Resume(choice.choice(ids))])
        harness.engine.receive([Resume(each) for each in ids])
        harness.run()
        assert not harness.failures, harness.failures
        assert not harness.engine._requests
        harness.engine._scheduler._contexts.check([])
        for number, text in zip(ids, texts, strict=True):
            if not text.is_right(harness, number):
                yield text

    def _submit(self, harness: Harness, text: Text) -> int:
        return text.submit(harness, self._random.choice(["", "other"]))


def _written(base: BaseModel, folder: Path) -> Iterator[Text]:
    """Yield texts, of which many begin alike, to which others are written with many adapters."""
    for model, adapter in written.models_of(base, folder):
        for length in (1, 9, 20):
            source = [random.Random(length).randrange(3, VOCAB) for _ in range(length)]
            for num_begun in (1, 3):
                begin = [2, 9, 40][:num_begun]
                expected = written.written(model, source, begin, NUM_WRITTEN)
                yield WrittenText(written.Text(source, begin, adapter, expected))


def _read(name: str, base: BaseModel, folder: Path) -> Iterator[Text]:
    """Yield texts that are embedded by many adapters, and some that heads read."""
    texts = read.texts(base, folder)
    for number, text in enumerate(texts):
        pooling = (Pooling.MEAN, Pooling.FIRST, Pooling.LAST)[number % 3]
        wanted = vector_of(text.states, pooling, normalize=False)
        yield ReadText(text.tokens, text.source, wanted, pooling, text.second_from)
    for task in tasks_of(own_model(folder)):
        config = config_for(
            name, task, target_modules=list(base.places)[::2],
            modules_to_save=lost_of(name, task) or None,
        )  # fmt: skip
        model = save_headed(folder, task, config, folder / task)
        source = pack_source(folder / task, folder / f"{task}.package")
        for text in texts[:5]:
            yield ReadText(text.tokens, source, expected_logits(model, text.tokens))
