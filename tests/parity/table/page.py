"""The page of all tables: each part stands by itself, and can be made without the others."""

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.parity.table import decoders, encoders, library, writers
from tests.parity.table.column import Cell, Found, Refusal

_WIDTH = 100
_BEGIN = """# Parity with PEFT

Each column is one mixed batch of all adapters, compared with PEFT running each adapter alone, on
tiny models with seeded float32 weights. A cell is empty if PEFT itself does not support the method
there, or if it changes nothing. [Methods that are folded](peft-fields.md#methods) become LoRA, or
whole layers, when packed.
`python -m tests.parity.table --output docs/parity.md` generates this page; with `--part`, only one
of its tables.
"""
_HEAD = "\n## "
Columns = Mapping[str, Mapping[str, Found]]


@dataclass(frozen=True)
class Part:
    """A table, and how it is made."""

    title: str
    text: str
    choices: str
    """What is equal or not beside the numbers."""
    architectures: tuple[str, ...]
    measure: Callable[[str, Path], dict[str, Found]]
    compares_merged: bool = False
    refused: str = "Refused at packing or upload:"
    """What is refused, and why; the server's own words for it follow."""


PARTS = {
    "decoders": Part(
        "Decoders",
        "Difference to PEFT with that adapter alone / to the model that `merge_and_unload` makes: "
        f"the largest difference of a log-probability over {decoders.NUM_TOKENS} greedy tokens and "
        "the whole vocabulary; for adapters with a head, of an output logit over two texts or all "
        "of their tokens. - means that PEFT does not merge the method; † that PEFT's merged model "
        "differs from its unmerged one, because with tied weights it adds to both. Norms are those "
        "outside of recurrent layers; inside of these, only linear layers can be adapted.",
        "greedy tokens and likeliest labels",
        decoders.ARCHITECTURES,
        decoders.measure,
        compares_merged=True,
    ),
    "encoders": Part(
        "Encoders",
        "The largest difference of a vector's element, pooled by the mean, the first and the last "
        "token, over two texts; for adapters with a head, of an output logit over two texts or all "
        "of their tokens.",
        "likeliest labels",
        encoders.ARCHITECTURES,
        encoders.measure,
        refused="Some methods do not save the sizes of layers, or depend on the weights of the "
        "base. Both are read from the base's checkpoint, where NomicBERT's layers have other "
        "names. Refused at packing or upload:",
    ),
    "writers": Part(
        "Encoder-decoders",
        f"The largest difference of a log-probability over {writers.NUM_TOKENS} greedy tokens and "
        "the whole vocabulary, over two texts. Methods with virtual embeddings are compared with "
        "PEFT's `generate`, which puts them before the source only.",
        "greedy tokens",
        writers.ARCHITECTURES,
        writers.measure,
        refused="Changes to linear layers and norms are served. Changes to embeddings, tokens and "
        "the output layer are refused at packing or upload:",
    ),
    "library": Part(
        "Bottlenecks of the adapters library",
        "Difference to the library (1.3) with the adapter alone, whose results are stored in "
        "files: the largest difference of a log-probability of the next token over the whole "
        "vocabulary, of a vector's element, or of a logit of its prediction heads.",
        "likeliest tokens and labels",
        library.ARCHITECTURES,
        library.measure,
    ),
}


def page(made: Mapping[str, Columns], before: str = "") -> str:
    """Return the page.

    Args:
        made: The parts that were made, by their keys in `PARTS`.
        before: The page as it was, whose other parts are kept.
    """
    sections = {text.partition("\n")[0]: text.strip("\n") for text in before.split(_HEAD)[1:]}
    sections |= {PARTS[key].title: _section(PARTS[key], columns) for key, columns in made.items()}
    titles = [part.title for part in PARTS.values() if part.title in sections]
    return "".join([_BEGIN, *(f"{_HEAD}{sections[title]}\n" for title in titles)])


def _section(part: Part, columns: Columns) -> str:
    names = list({name: None for column in columns.values() for name in column})
    cells = [
        cell for column in columns.values() for cell in column.values() if isinstance(cell, Cell)
    ]
    chosen = [cell.is_same for cell in cells if cell.is_same is not None]
    reasons = _reasons(columns)
    summary = (
        f"PEFT {version('peft')}, transformers {version('transformers')}, torch "
        f"{version('torch')}. Worst of {len(cells)} cells: "
        f"{max(cell.alone for cell in cells):.1e}; {part.choices} equal in {sum(chosen)} of "
        f"{len(chosen)}."
    )
    lines = [
        part.title,
        "",
        textwrap.fill(part.text, _WIDTH),
        "",
        textwrap.fill(summary, _WIDTH),
        "",
        f"| method | {' | '.join(columns)} |",
        f"| --- |{' --- |' * len(columns)}",
        *(
            f"| {name} | "
            f"{' | '.join(_shown(part, column.get(name), reasons) for column in columns.values())}"
            " |"
            for name in names
        ),
    ]
    if reasons:
        lines += ["", textwrap.fill(part.refused, _WIDTH), ""]
        lines += [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join(lines)


def _reasons(columns: Columns) -> dict[str, int]:
    """Return a number for each reason of a refusal."""
    found: dict[str, int] = {}
    for column in columns.values():
        for cell in column.values():
            if isinstance(cell, Refusal):
                found.setdefault(cell.reason, len(found) + 1)
    return found


def _shown(part: Part, cell: Found, reasons: Mapping[str, int]) -> str:
    if cell is None:
        return ""
    if isinstance(cell, Refusal):
        return f"refused ({reasons[cell.reason]})"
    text = f"{cell.alone:.0e}" if cell.alone else "0"
    if part.compares_merged:
        merged = "-" if cell.merged is None else f"{cell.merged:.0e}".replace("nan", "†")
        text += f" / {merged}"
    return f"{text} (others chosen)" if cell.is_same is False else text
