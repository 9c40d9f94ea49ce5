"""Gain and cost of speculative decoding, by acceptance rate.

Texts are sampled from random weights, so that nothing in them repeats; a draft is accepted where
the predicted text (`prediction`) is right. Each text is predicted with a fraction of its tokens
changed, or not at all, or it is requested again, like an adapter that repeats an earlier output.
Two engines alternate, with and without drafts; both sample the same tokens, except for rounding
errors.

    python -m benchmarks.speculation --batch 1 --batch 8 --batch 32
"""

import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import msgspec
import typer

from benchmarks import machine
from benchmarks.fixture import SHAPES, make_adapters
from benchmarks.local_engine import Completed, LocalEngine, fixture_base, packaged
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.ask import Ask
from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.messages import Submit
from loramux_server.wire.sampling import Sampling

_RIGHT = (0.5, 0.8, 0.9, 1.0)
"""Fractions of a predicted text that are right."""


def main(
    batch: Annotated[list[int], typer.Option(help="Concurrent requests; repeatable.")],
    tokens: Annotated[int, typer.Option(help="Output tokens of each request.")] = 128,
    context: Annotated[int, typer.Option(help="Prompt length in tokens.")] = 128,
    drafts: Annotated[int, typer.Option(help="Maximum number of tokens in a draft.")] = 16,
    repeats: Annotated[int, typer.Option(help="Rounds; medians are reported.")] = 3,
    shape: Annotated[str, typer.Option(help=f"Base model: {', '.join(SHAPES)}.")] = "smollm2-135m",
    dtype: Annotated[str, typer.Option(help="Data type of the base.")] = "auto",
    output: Annotated[Path | None, typer.Option(help="File for the result, as JSON.")] = None,
) -> None:
    """Print tokens per second with drafts ÷ without."""
    figures: list[dict[str, Any]] = []
    described = machine.describe()
    options = {
        "tokens": tokens, "context": context, "drafts": drafts, "repeats": repeats, "shape": shape,
        "dtype": dtype,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="loramux-bench-") as name:
        folder = Path(name)
        make_adapters(folder / "adapters", SHAPES[shape], [16], max(batch))
        adapters = packaged(folder / "adapters")
        base = fixture_base(folder, SHAPES[shape])
        config = EngineConfig(model="", max_running=max(batch), adapter_memory=4 << 30, dtype=dtype)
        plain = LocalEngine(base, config)
        drafting = LocalEngine(base, config, speculative_tokens=drafts)
        for size in batch:
            measure = Measure(plain, drafting, adapters[:size], tokens, context)
            measure.warm_up()
            for found in measure.figures(repeats):
                figures.append({"batch": size, **found})
                print("  ".join(f"{key} {value}" for key, value in figures[-1].items()), flush=True)
            if output:  # results so far, whatever happens next
                result = {
                    "command": "python -m benchmarks.speculation",
                    "options": options,
                    "machine": described,
                    "figures": figures,
                }
                output.write_text(json.dumps(result, indent=1) + "\n")


class Measure:
    """Concurrent requests for distinct adapters, to an engine with drafts and one without."""

    def __init__(
        self, plain: LocalEngine, drafting: LocalEngine, adapters: Sequence[AdapterSource],
        tokens: int, context: int,
    ) -> None:  # fmt: skip
        self._plain = plain
        self._drafting = drafting
        self._adapters = adapters
        self._tokens = tokens
        self._context = context
        self._rng = random.Random(0)
        self._next_id = 0

    def warm_up(self) -> None:
        """Warm up: compile everything, and measure the cost of tokens."""
        asked = self._requests()
        texts = self._ask(self._plain, asked).texts
        self._ask(self._drafting, asked, texts)
        self._ask(self._drafting, asked)

    def figures(self, repeats: int) -> list[dict[str, Any]]:
        """Return the result for each kind of prediction."""
        names = ["nothing foretold", *(f"{100 * part:.0f} % right" for part in _RIGHT), "again"]
        ratios: dict[str, list[float]] = {name: [] for name in names}
        drafted, accepted, others = (dict.fromkeys(names, 0) for _ in range(3))
        for _ in range(repeats):
            for name, part in zip(names, (0.0, *_RIGHT, 0.0), strict=True):
                asked = self._requests()
                plain = self._ask(self._plain, asked)
                foretold = [self._changed(text, part) for text in plain.texts] if part else None
                if name == "again":
                    self._ask(self._drafting, asked)
                found = self._ask(self._drafting, asked, foretold)
                same = zip(found.texts, plain.texts, strict=True)
                others[name] += sum(text != wanted for text, wanted in same)
                ratios[name].append(plain.seconds / found.seconds)
                drafted[name] += found.drafted
                accepted[name] += found.accepted
        return [
            {
                "foretold": name,
                "speedup": round(median(ratios[name]), 3),
                "all": [round(ratio, 3) for ratio in ratios[name]],
                "drafted": drafted[name],
                "accepted": accepted[name],
                "other texts": others[name],
            }
            for name in names
        ]

    def _requests(self) -> list[Submit]:
        """Return a request for each adapter."""
        vocab_size = self._plain.info.vocab_size
        return [
            Submit(
                0,
                Ask(
                    [self._rng.randrange(3, vocab_size) for _ in range(self._context)],
                    adapter,
                    Sampling(
                        max_tokens=self._tokens, seed=self._rng.getrandbits(32), ignore_eos=True
                    ),
                ),
            )
            for adapter in self._adapters
        ]

    def _ask(
        self,
        engine: LocalEngine,
        asked: Sequence[Submit],
        foretold: Sequence[list[int]] | None = None,
    ) -> Completed:
        messages = []
        for number, message in enumerate(asked):
            self._next_id += 1
            prediction = foretold[number] if foretold else []
            ask = msgspec.structs.replace(message.ask, prediction=prediction)
            messages.append(Submit(self._next_id, ask))
        return engine.complete(messages)

    def _changed(self, text: list[int], right: float) -> list[int]:
        """Return `text` with only a fraction of its tokens unchanged."""
        vocab_size = self._plain.info.vocab_size
        return [
            token if self._rng.random() < right else self._rng.randrange(3, vocab_size)
            for token in text
        ]


if __name__ == "__main__":
    typer.run(main)
