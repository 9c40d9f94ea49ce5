"""Acceptance of drafts on typical outputs of fine-tuned models: tokens per step.

No model runs: the texts are given, as if a model had generated them, and pass through the engine's
drafting as consecutive requests for one adapter. The cost of an additional token is not measured
but given, as a fraction of a step (`--token-cost`). Tokens come from a byte-level tokenizer trained
on the sources of torch and transformers, which are also the code that is edited and written.

    python -m benchmarks.drafted_texts
"""

import json
import random
import re
import sysconfig
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import machine
from benchmarks.forms import tokenizer_of
from loramux_server.engine.ends import Ends
from loramux_server.engine.plan import Chunk
from loramux_server.engine.request import Request
from loramux_server.engine.speculation import Speculation
from loramux_server.wire.sampling import Sampling

_MANY = 1 << 30
_LABELS = ("positive", "negative", "mostly neutral, and somewhat positive")


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and its completion."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Figures:
    """The results for one kind of text."""

    kind: str
    tokens_per_step: float
    drafted_per_step: float
    time: float
    """Time per token by the given cost, relative to that without drafts."""


def main(
    token_cost: Annotated[
        float, typer.Option(help="Cost of an additional token, as a fraction of a step.")
    ] = 0.08,
    drafts: Annotated[int, typer.Option(help="Maximum number of tokens in a draft.")] = 16,
    texts: Annotated[
        int, typer.Option(help="Texts of each kind; half of them are for learning.")
    ] = 100,
    vocab: Annotated[int, typer.Option(help="Vocabulary size of the tokenizer.")] = 16000,
    output: Annotated[Path | None, typer.Option(help="File for the result, as JSON.")] = None,
) -> None:
    """Print the tokens per step for each kind of text."""
    tokenizer = tokenizer_of(vocab)
    figures = []
    for kind, make in Texts().kinds().items():
        found = follow(
            kind,
            [make() for _ in range(texts)],
            lambda text: list(tokenizer.encode(text).ids),
            Speculation(drafts, Ends(_MANY, frozenset())),
            token_cost,
        )
        figures.append(found)
        print(
            f"{kind:26} a step drafts {found.drafted_per_step:5.2f} tokens and gives "
            f"{found.tokens_per_step:5.2f}; a token takes {found.time:.2f} of its time without",
            flush=True,
        )
    if output:
        result = {
            "command": "python -m benchmarks.drafted_texts",
            "options": {
                "token_cost": token_cost, "drafts": drafts, "texts": texts, "vocab": vocab
            },
            "machine": machine.describe(),
            "figures": [asdict(found) for found in figures],
        }  # fmt: skip
        output.write_text(json.dumps(result, indent=1) + "\n")


def follow(
    kind: str,
    texts: list[Text],
    encode: Callable[[str], list[int]],
    speculation: Speculation,
    token_cost: float,
) -> Figures:
    """Return the results for the second half of `texts`, after the first."""
    num_tokens = num_steps = num_drafted = 0
    for number, text in enumerate(texts):
        request = Request(number, encode(text.prompt), None, Sampling(max_tokens=_MANY, seed=0))
        left = encode(text.answer)
        while left:
            chunk = Chunk(request, 0, request.num_tokens)
            found = speculation.drafts([chunk], _MANY, token_cost)
            draft = list(found.get(request, ()))
            right = 0
            while right < min(len(draft), len(left) - 1) and draft[right] == left[right]:
                right += 1
            request.output += left[: right + 1]
            left = left[right + 1 :]
            if number >= len(texts) // 2:
                num_steps += 1
                num_tokens += right + 1
                num_drafted += len(draft)
        speculation.end(request)
    time = (num_steps + token_cost * num_drafted) / num_tokens
    return Figures(kind, num_tokens / num_steps, num_drafted / num_steps, time)


class Texts:
    """Seeded texts of typical fine-tuning tasks."""

    def __init__(self) -> None:
        self._rng = random.Random(0)
        models = Path(sysconfig.get_path("purelib")) / "transformers/models"
        files = sorted(models.glob("*/modeling_*.py"))[:60]
        self._sources = [file.read_text(encoding="utf-8") for file in files]
        self._words = sorted(set(re.findall(r"[a-z]{4,9}", "".join(self._sources[:8]))))

    def kinds(self) -> dict[str, Callable[[], Text]]:
        """Return the function that makes a text, for each kind."""
        return {
            "a record as JSON": self.record,
            "one of three labels": self.label,
            "code with a name changed": self.edit,
            "other code": self.code,
        }

    def record(self) -> Text:
        """Return an invoice, and its fields as JSON."""
        rng = self._rng
        customer, city = f"{self._name()} {self._name()}", self._name()
        day, total = rng.randrange(10, 28), rng.randrange(10, 9999)
        fields = {
            "customer": customer, "city": city, "due": f"2026-05-{day}", "total": total,
            "currency": "EUR", "paid": rng.random() < 0.3,
        }  # fmt: skip
        asked = f"{customer} of {city} owes {total} EUR, due by 2026-05-{day}."
        return Text(f"{asked}\n### Fields:\n", json.dumps(fields) + "\n")

    def label(self) -> Text:
        """Return words and their sentiment."""
        words = " ".join(self._rng.choice(self._words) for _ in range(30))
        return Text(f"{words}\n### Sentiment:\n", self._rng.choice(_LABELS) + "\n")

    def edit(self) -> Text:
        """Return code, and the same with a renamed identifier."""
        code = self._piece(1500)
        name = self._rng.choice(re.findall(r"[a-z_]{5,}", code))
        return Text(
            f"Call {name} new_name:\n{code}\n### Code:\n", code.replace(name, "new_name") + "\n"
        )

    def code(self) -> Text:
        """Return a prompt without context, and code."""
        return Text("Write code.\n### Code:\n", self._piece(800) + "\n")

    def _name(self) -> str:
        word: str = self._rng.choice(self._words)
        return word.title()

    def _piece(self, length: int) -> str:
        source = self._rng.choice(self._sources)
        first = self._rng.randrange(len(source) - length)
        return source[first : first + length]


if __name__ == "__main__":
    typer.run(main)
