"""Cost of texts on a base with an encoder, with and without adapters, compared with PEFT.

A base of BERT's or T5's shape with random weights. Texts of random lengths arrive at once, without
adapters and with a distinct one each: an encoder embeds them, T5 generates a number of tokens for
each. transformers' own model, and PEFT with as many adapters, get them as one padded batch.

    python -m benchmarks.encoders --shape bert-base --batch 1 --batch 8 --batch 32
    python -m benchmarks.encoders --shape t5-base --batch 1 --batch 8
"""

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from peft import PeftModel
from transformers import (
    AutoModel,
    AutoModelForSeq2SeqLM,
    BertConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
)

from benchmarks import machine
from benchmarks.local_engine import LocalEngine
from benchmarks.random_adapters import save_adapters, with_adapters
from benchmarks.random_bases import load_base, save_base
from benchmarks.step_ways import in_turns, write_record
from loramux_adapters.embedding import Pooling
from loramux_server.wire.engine_config import EngineConfig

VOCAB = 2048
_START = 2
"""The token that T5's output begins with."""


@dataclass(frozen=True)
class Shape:
    """The shape of a base."""

    hidden: int
    inner: int
    heads: int
    layers: int
    writes: bool = False

    @property
    def config(self) -> PreTrainedConfig:
        """Its config, with a small vocabulary."""
        if self.writes:
            return T5Config(
                vocab_size=VOCAB, d_model=self.hidden, d_kv=self.hidden // self.heads,
                d_ff=self.inner, num_layers=self.layers, num_heads=self.heads,
                decoder_start_token_id=_START,
            )  # fmt: skip
        return BertConfig(
            vocab_size=VOCAB, hidden_size=self.hidden, intermediate_size=self.inner,
            num_hidden_layers=self.layers, num_attention_heads=self.heads,
        )  # fmt: skip

    @property
    def adapted(self) -> dict[str, tuple[int, int, int]]:
        """The layers that adapters change: query and value projections."""
        width = (self.hidden, self.hidden, 1)
        if not self.writes:
            return {
                f"encoder.layer.{layer}.attention.self.{name}": width
                for layer in range(self.layers)
                for name in ("query", "value")
            }
        attention = [("encoder", 0, "SelfAttention"), ("decoder", 0, "SelfAttention")]
        attention.append(("decoder", 1, "EncDecAttention"))
        return {
            f"{side}.block.{block}.layer.{place}.{kind}.{name}": width
            for side, place, kind in attention
            for block in range(self.layers)
            for name in ("q", "v")
        }


SHAPES = {
    "bert-base": Shape(768, 3072, 12, 12),
    "t5-base": Shape(768, 3072, 12, 12, writes=True),
    "tiny-bert": Shape(64, 128, 4, 2),
    "tiny-t5": Shape(64, 128, 4, 2, writes=True),
}
Texts = Sequence[Sequence[int]]


def main(
    batch: Annotated[list[int], typer.Option(help="Texts per batch; repeatable.")],
    shape: Annotated[str, typer.Option(help=f"Base model: {', '.join(SHAPES)}.")] = "bert-base",
    repeats: Annotated[int, typer.Option(help="Alternating rounds; medians are reported.")] = 3,
    shortest: Annotated[int, typer.Option(help="Length of the shortest text in tokens.")] = 16,
    longest: Annotated[int, typer.Option(help="Length of the longest text in tokens.")] = 128,
    written: Annotated[int, typer.Option(help="Tokens that T5 generates for each text.")] = 32,
    output: Annotated[Path | None, typer.Option(help="File for the result, as JSON.")] = None,
) -> None:
    """Print milliseconds per batch, and ratios to the base alone."""
    options = {
        "shape": shape, "repeats": repeats, "shortest": shortest, "longest": longest,
        "written": written,
    }  # fmt: skip
    of_base = SHAPES[shape]
    described, figures = machine.describe(), []
    with tempfile.TemporaryDirectory(prefix="loramux-bench-") as name:
        folder = Path(name)
        kind = AutoModelForSeq2SeqLM if of_base.writes else AutoModel
        base = save_base(folder / "base", of_base.config, kind=kind, dtype=torch.float32)
        adapters = save_adapters(
            folder / "adapters", of_base.adapted, max(batch), target_modules=[
                *({"q", "v"} if of_base.writes else {"query", "value"})
            ],
            task_type="SEQ_2_SEQ_LM" if of_base.writes else "FEATURE_EXTRACTION",
        )  # fmt: skip
        # Earlier outputs must not be reused as drafts.
        engine = LocalEngine(
            base,
            EngineConfig(
                model="", adapter_memory=1 << 30, max_running=max(batch), prefix_cache=False,
                max_batch_tokens=max(batch) * longest,
            ),
        )  # fmt: skip
        own = load_base(base, kind=kind)
        peft = with_adapters(load_base(base, kind=kind), folder / "adapters", max(batch))
        theirs = partial(_written, count=written) if of_base.writes else _read
        ours = partial(engine.write_seconds, count=written, begin=_START)
        for size in batch:
            rng = random.Random(size)
            texts = [
                [rng.randrange(3, VOCAB) for _ in range(rng.randint(shortest, longest))]
                for _ in range(size)
            ]
            run = ours if of_base.writes else partial(engine.embed_seconds, pooling=Pooling.MEAN)
            names = [f"a{index:04d}" for index in range(size)]
            ways: dict[str, Callable[[], float]] = {
                "base": partial(run, texts, [None] * size),
                "adapters": partial(run, texts, adapters[:size]),
                "transformers": partial(theirs, own, texts),
                "PEFT": partial(theirs, peft, texts, adapter_names=names),
            }
            figures.append(in_turns(size, ways, repeats))
        engine.close()
    if output:
        write_record(output, "python -m benchmarks.encoders", options, described, figures)


def _padded(texts: Texts) -> dict[str, torch.Tensor]:
    longest = max(map(len, texts))
    return {
        "input_ids": torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts]),
        "attention_mask": torch.tensor(
            [[1] * len(text) + [0] * (longest - len(text)) for text in texts]
        ),
    }


@torch.inference_mode()
def _read(model: PreTrainedModel | PeftModel, texts: Texts, **named: object) -> float:
    """Return the seconds that `model` takes to embed `texts`."""
    begin = time.perf_counter()
    given = _padded(texts)
    states = model(**given, **named)[0]
    mask = given["attention_mask"][..., None]
    (states * mask).sum(1).div(mask.sum(1)).numpy()
    return time.perf_counter() - begin


@torch.inference_mode()
def _written(
    model: PreTrainedModel | PeftModel, texts: Texts, count: int, **named: object
) -> float:
    """Return the seconds that `model` takes to generate `count` tokens for each of `texts`."""
    begin = time.perf_counter()
    model.generate(
        **_padded(texts), **named, do_sample=False,
        generation_config=GenerationConfig(
            min_new_tokens=count, max_new_tokens=count, decoder_start_token_id=_START,
            pad_token_id=0, eos_token_id=1,
        ),
    )  # fmt: skip
    return time.perf_counter() - begin


if __name__ == "__main__":
    typer.run(main)
