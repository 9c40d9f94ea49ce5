"""Whether a bit of any answer depends on the batch, with `--deterministic` and without.

`make needle`, or `python -m tests.needle COUNT`: so many random batches, each request held against
itself alone. Prints what differs, which without the option has to be something.
"""

import sys
import tempfile
import time
from pathlib import Path

from tests.support.batches import Batches, saved_sources

FEW = 50
"""Batches that are enough to find a difference where there are any."""


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        sources = saved_sources(Path(folder))
        begin = time.monotonic()
        wrong = len(list(Batches(sources, deterministic=True).differences(count)))
        seconds = time.monotonic() - begin
        print(f"deterministic: {wrong} answers differ in {count} batches ({seconds:.0f} s)")
        control = len(list(Batches(sources, deterministic=False).differences(FEW)))
        print(f"otherwise: {control} answers differ in {FEW} batches")
    return int(wrong > 0 or control == 0)


if __name__ == "__main__":
    sys.exit(main())
