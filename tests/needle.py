"""Whether a bit of any answer depends on the batch, with `--deterministic` and without.

`make needle`, or `python -m tests.needle --help`: so many random batches, each request held against
itself alone. Prints what differs, which without the option has to be something, and writes JSON if
told where. On bases with recurrent layers, and on those that read texts as wholes, which have no
such option, answers may differ by rounding and no more: the latter from what PEFT has.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.support.batches import Batches, saved_sources
from tests.support.encoder_batches import EncoderBatches
from tests.support.encoder_models import ENCODERS, SEQ2SEQ
from tests.support.models import RECURRENT
from tests.support.recurrent_batches import RecurrentBatches
from tests.support.report import write_report
from tests.support.table import markdown

FEW = 50
"""Batches that are enough to find a difference where there are any."""


def recurrent_row(architecture: str, count: int) -> dict[str, object]:
    """Return what came of so many batches on a base of `architecture`."""
    with tempfile.TemporaryDirectory() as folder:
        subject = RecurrentBatches(architecture, Path(folder))
        wrong = len(list(subject.differences(count)))
    return {
        "base": architecture,
        "batches": count,
        "differ": wrong,
        "tokens shared": subject.num_shared_tokens,
        "preemptions": subject.num_preemptions,
    }


def whole_row(name: str, count: int) -> dict[str, object]:
    """Return what came of so many batches on the base `name`, which reads whole texts."""
    with tempfile.TemporaryDirectory() as folder:
        subject = EncoderBatches(name, Path(folder))
        wrong = len(list(subject.differences(count)))
    return {
        "base": name,
        "batches": count,
        "differ": wrong,
        "adapters in a step": subject.most_adapters,
        "preemptions": subject.num_preemptions,
    }


def decoder_parts(count: int) -> dict[str, dict[str, object]]:
    """Return what came of so many batches with `--deterministic`, and of few without."""
    with tempfile.TemporaryDirectory() as folder:
        sources = saved_sources(Path(folder))
        begin = time.monotonic()
        wrong = len(list(Batches(sources, deterministic=True).differences(count)))
        seconds = time.monotonic() - begin
        print(f"deterministic: {wrong} answers differ in {count} batches ({seconds:.0f} s)")
        control = len(list(Batches(sources, deterministic=False).differences(FEW)))
        print(f"otherwise: {control} answers differ in {FEW} batches")
    return {
        "deterministic": {"batches": count, "differ": wrong, "seconds": round(seconds, 1)},
        "otherwise": {"batches": FEW, "differ": control},
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.needle", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="batches; 0 for none")
    parser.add_argument(
        "--recurrent-count", type=int, default=100,
        help="batches on each base with such layers; 0 for none",
    )  # fmt: skip
    parser.add_argument(
        "--whole-count", type=int, default=100,
        help="batches on each base that reads whole texts; 0 for none",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="file for the figures, as JSON")
    arguments = parser.parse_args()
    is_wrong, found = False, dict[str, object]()
    if arguments.count:
        parts = decoder_parts(arguments.count)
        is_wrong = bool(parts["deterministic"]["differ"]) or not parts["otherwise"]["differ"]
        found |= parts
    for kind, row_of, names, count in (
        ("recurrent", recurrent_row, [*RECURRENT], arguments.recurrent_count),
        ("whole", whole_row, [*ENCODERS, *SEQ2SEQ], arguments.whole_count),
    ):
        if count:
            rows = [row_of(each, count) for each in names]
            print(markdown(rows))
            is_wrong = is_wrong or any(row["differ"] for row in rows)
            found[kind] = rows
    if arguments.output:
        write_report(arguments.output, found)
    return int(is_wrong)


if __name__ == "__main__":
    sys.exit(main())
