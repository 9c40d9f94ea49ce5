"""How far each method is from PEFT on each base model, as tables.

`python -m tests.parity.table --output docs/parity.md`: on every base all methods run in one mixed
batch, and each row is held against PEFT with that adapter alone.
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from transformers.utils import logging

from tests.parity.table.column import Column
from tests.parity.table.page import PARTS, Columns, page


def main(
    output: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="JSON file to write.")] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(help=f"Only these: {', '.join(PARTS)}. The file keeps the others."),
    ] = None,
    architecture: Annotated[list[str] | None, typer.Option(help="Only these.")] = None,
    kernels: Annotated[
        str, typer.Option(help="Those of cpu, torch, or with TRITON_INTERPRET=1 triton.")
    ] = Column.kernels,
) -> None:
    """Measure and print the tables."""
    Column.kernels = kernels
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    made: dict[str, Columns] = {}
    for key in part or PARTS:
        if key not in PARTS:
            raise typer.BadParameter(f"{key!r} is no part; there are {', '.join(PARTS)}")
        columns = {}
        for name in PARTS[key].architectures:
            if architecture is None or name in architecture:
                with tempfile.TemporaryDirectory() as folder:
                    columns[name] = PARTS[key].measure(name, Path(folder))
        if columns:
            made[key] = columns
    before = output.read_text(encoding="utf-8") if part and output and output.exists() else ""
    text = page(made, before)
    print(text, end="")
    if output:
        output.write_text(text, encoding="utf-8")
    if as_json:
        plain = {
            key: {
                name: {method: cell and vars(cell) for method, cell in column.items()}
                for name, column in columns.items()
            }
            for key, columns in made.items()
        }
        as_json.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
