"""Cost of a large registry: opening it, resolving a reference, listing a page.

All in CPU time, since machines are shared and none of this waits for I/O: lookups are in memory.
Versions are written to the catalog in one transaction, unlike in a server; their files do not
exist, and nothing that is measured reads them.

    python -m benchmarks.registry --versions 100000
"""

import datetime
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import sqlalchemy as sa
import typer

from benchmarks import machine
from loramux_server.store.catalog import Catalog
from loramux_server.store.registry import Registry
from loramux_server.store.schema import names, versions

PAGE = 100


@dataclass(frozen=True)
class Figure:
    """A measured value and its goal."""

    what: str
    measured: float
    aim: float
    unit: str


def main(
    count: Annotated[int, typer.Option("--versions", help="Versions in the catalog.")] = 100_000,
    samples: Annotated[int, typer.Option(help="Calls of each kind.")] = 2_000,
    output: Annotated[Path | None, typer.Option(help="File for the result, as JSON.")] = None,
) -> None:
    """Print the cost of a registry with this many versions, each of a different adapter."""
    with tempfile.TemporaryDirectory(prefix="loramux-bench-") as name:
        folder = Path(name)
        _fill(folder, count)
        begin = time.process_time()
        registry = Registry(folder)
        opening = time.process_time() - begin
        figures = [
            Figure("import", _import_ms(), 100.0, "ms"),
            Figure("open", opening, 5.0, "s"),
            *_measure(registry, count, samples),
        ]
        registry.close()
    print(f"{'measure':<28}{'measured':>12}{'aim':>10}")
    for figure in figures:
        print(f"{figure.what:<28}{figure.measured:>9.3f} {figure.unit:<3}{figure.aim:>9g}")
    if output:
        found = {figure.what: figure.__dict__ for figure in figures}
        result = {"machine": machine.describe(), "versions": count, "measures": found}
        output.write_text(json.dumps(result, indent=1) + "\n")


def _fill(folder: Path, count: int) -> None:
    catalog = Catalog.in_folder(folder)
    now = datetime.datetime.now(datetime.UTC)
    fixed: dict[str, Any] = {
        "tenant": "public", "version": 1, "size_bytes": 1 << 20, "rank": 8, "num_bytes": 1 << 20,
        "item_bytes": 4, "target_modules": '["q_proj"]', "base_model": "", "source": "upload",
        "stamp": "", "created_at": now, "is_pinned": False,
    }  # fmt: skip
    rows = [fixed | {"name": f"a{i}", "digest": f"sha256:{i:064x}"} for i in range(count)]
    known = [{"tenant": "public", "name": row["name"], "last_version": 1} for row in rows]
    with catalog._engine.begin() as connection:
        connection.execute(sa.insert(versions), rows)
        connection.execute(sa.insert(names), known)
    catalog.close()


def _measure(registry: Registry, count: int, samples: int) -> list[Figure]:
    chosen = random.Random(0)

    def resolve() -> None:
        # A reference that was not parsed before, and a lease.
        with registry.lease(f"a{chosen.randrange(count)}:1"):
            pass

    def page() -> None:
        records = registry.records(begin=("public", f"a{chosen.randrange(count)}"))
        for _, _ in zip(range(PAGE), records, strict=False):
            pass

    resolving, paging = _p99_ms(resolve, samples), _p99_ms(page, samples // 10)
    return [
        Figure("resolve and lease, p99", resolving, 1.0, "ms"),
        Figure(f"a page of {PAGE}, p99", paging, 20.0, "ms"),
    ]


def _p99_ms(call: Callable[[], None], samples: int) -> float:
    seconds = []
    for _ in range(max(samples, 1)):
        begin = time.thread_time()
        call()
        seconds.append(time.thread_time() - begin)
    return sorted(seconds)[len(seconds) * 99 // 100] * 1000


def _import_ms() -> float:
    """Return the time to import the store, the minimum of several runs."""
    program = (
        "import time; begin = time.process_time(); import loramux_server.store.registry; "
        "print(time.process_time() - begin)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        for _ in range(5)
    ]
    return min(float(run.stdout) for run in runs) * 1000


if __name__ == "__main__":
    typer.run(main)
