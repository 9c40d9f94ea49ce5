"""Uses a server in all ways for long, prints a table, and writes JSON if told where.

`make soak`, or `python -m tests.soak --help`. Ends with 1 if something leaks, or went otherwise
than it had to.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.soak.bases import (
    demo_campaign,
    encoder_campaign,
    hybrid_campaign,
    seq2seq_campaign,
    vision_campaign,
)
from tests.support.report import write_report
from tests.support.table import markdown

BASES = {
    "demo": demo_campaign, "hybrid": hybrid_campaign, "vision": vision_campaign,
    "encoder": encoder_campaign, "seq2seq": seq2seq_campaign,
}  # fmt: skip
"""Name -> uses a server of that base."""


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--base", choices=[*BASES], default="demo")
    parser.add_argument("--output", type=Path, help="file for the figures, as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = BASES[arguments.base](arguments.seconds, Path(folder))
    done = ", ".join(f"{count} {kind}" for kind, count in sorted(outcome.done.items()))
    print(markdown(outcome.rows()))
    print(f"\n{outcome.done.total()} things done in {outcome.seconds:.0f} s ({done}), ", end="")
    print(f"{outcome.num_surprises} of them not as they had to be")
    print(f"{outcome.num_preemptions} requests had to start over")
    for finding in outcome.findings:
        print(finding)
    if arguments.output:
        write_report(arguments.output, outcome.report())
    return int(bool(outcome.findings))


if __name__ == "__main__":
    sys.exit(main())
