"""Cost of structured output: the tokenizer, compiling a grammar, and each token.

Measured in isolation: no engine is running. The vocabulary is trained on the sources of torch and
transformers, which give about 117,000 tokens at most.

    python -m benchmarks.forms --vocab 49152 --vocab 128000
"""

import json
import statistics
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks import machine
from loramux_server.engine.allowed import only_allowed
from loramux_server.forms.form import Form, FormKind
from loramux_server.forms.messages import Advance, Allowed, Begin, Setup
from loramux_server.forms.worker import TextFollower

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0},
        "email": {"type": "string", "maxLength": 40},
        "kind": {"enum": ["a", "b", "c"]},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
    },
    "required": ["name", "age", "email", "kind", "tags"],
    "additionalProperties": False,
}
END = "</s>"


@dataclass(frozen=True)
class Figures:
    """The results for one vocabulary."""

    vocab: int
    tokenizer_seconds: float
    compile_ms: float
    """Including the first tokens."""
    mean_us: float
    """Per token, as are the next two."""
    p50_us: float
    p99_us: float
    step_us: float
    """Time of a row within the step."""


def main(
    vocab: Annotated[list[int], typer.Option(help="Vocabulary size in tokens; repeatable.")],
    texts: Annotated[int, typer.Option(help="Number of texts.")] = 50,
    output: Annotated[Path | None, typer.Option(help="File for the result, as JSON.")] = None,
) -> None:
    """Print the cost of the schema of an object with five fields."""
    torch.set_num_threads(1)
    figures = [measure(tokenizer_of(size), texts) for size in vocab]
    for found in figures:
        print("  ".join(f"{name} {value:.6g}" for name, value in found.__dict__.items()))
    if output:
        result = {
            "command": "python -m benchmarks.forms",
            "machine": machine.describe(),
            "figures": [f.__dict__ for f in figures],
        }
        output.write_text(json.dumps(result, indent=1) + "\n")


def tokenizer_of(vocab: int) -> Tokenizer:
    """Return a byte-level tokenizer of this many tokens, or of as many as possible."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sources = Path(sysconfig.get_path("purelib"))
    files = [file for name in ("torch", "transformers") for file in (sources / name).rglob("*.py")]
    few = sorted(files)[: None if vocab > 1000 else 10]
    tokenizer.train_from_iterator((f.read_text("utf-8", "ignore") for f in few), trainer)
    return tokenizer


def measure(tokenizer: Tokenizer, texts: int) -> Figures:
    """Return the cost of constraining this many texts."""
    size = tokenizer.get_vocab_size()
    setup = Setup(tokenizer.to_str(), size, tokenizer.encode(END).ids)
    begin = time.process_time()
    follower = TextFollower(setup)
    seconds = time.process_time() - begin
    form = Form(FormKind.JSON_SCHEMA, json.dumps(SCHEMA))
    begin = time.process_time()
    follower.answer(Begin(0, form, []))
    compiled = time.process_time() - begin
    each: list[float] = []
    bits = b""
    for number in range(1, texts + 1):
        follower.answer(Begin(number, form, []))
        for token in tokenizer.encode(_text(number)).ids:
            begin = time.perf_counter()
            answer = follower.answer(Advance(number, [token]))
            each.append(time.perf_counter() - begin)
            assert isinstance(answer, Allowed)
            bits = answer.bits
    logits_V = torch.from_numpy(np.random.default_rng(0).standard_normal(size, np.float32))
    return Figures(
        size, seconds, compiled * 1e3, statistics.mean(each) * 1e6,
        float(np.quantile(each, 0.5)) * 1e6, float(np.quantile(each, 0.99)) * 1e6,
        _us(lambda: only_allowed(logits_V, bits), 300),
    )  # fmt: skip


def _text(number: int) -> str:
    content = {
        "name": f"Ada Lovelace {number}",
        "age": 36 + number % 50,
        "email": "ada@example.org",
        "kind": "b",
        "tags": ["mathematics", "poetry", "engines of analysis"],
    }
    return json.dumps(content, indent=[None, 2, 4][number % 3])


def _us(call: Callable[[], object], count: int) -> float:
    begin = time.process_time()
    for _ in range(count):
        call()
    return (time.process_time() - begin) / count * 1e6


if __name__ == "__main__":
    typer.run(main)
