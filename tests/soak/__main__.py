"""Uses a server in all ways for long, prints a table, and writes JSON if told where.

`make soak`, or `python -m tests.soak --help`. Ends with 1 if something leaks, or went otherwise
than it had to.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from peft import LoraConfig
from transformers import AutoModelForCausalLM

from loramux_adapters import pack
from loramux_adapters.head import Task
from tests.soak.campaign import Outcome, campaign
from tests.soak.worker import Setting
from tests.support.classifiers import classifier, save_classifier
from tests.support.demo import DEMO
from tests.support.report import write_report
from tests.support.server import RunningServer
from tests.support.table import markdown
from tests.support.tool_templates import TAGS

ADAPTERS = ("reverse", "upper", "sort", "title", "double")
CHATS = "title"
LABELS, SPANS = "mood", "finder"
NUM_PACKAGES = 12


def variants(sources: Sequence[Path], folder: Path) -> list[Path]:
    """Write packages that differ in a note alone, and so in their digests."""
    packages = []
    for number in range(NUM_PACKAGES):
        copy = folder / f"variant-{number}"
        shutil.copytree(sources[number % len(sources)], copy)
        (copy / "loramux.json").write_text(json.dumps({"licence": f"variant {number}"}))
        packages.append(folder / f"{number}.safetensors")
        with packages[-1].open("wb") as file:
            pack(copy, file)
    return packages


def demo_campaign(seconds: float, folder: Path) -> Outcome:
    """Use a server of the embedded model and its adapters for so long."""
    adapters = folder / "adapters"
    shutil.copytree(DEMO / "adapters", adapters)
    (adapters / CHATS / "chat_template.jinja").write_text(TAGS)
    base = AutoModelForCausalLM.from_pretrained(DEMO / "base")
    for name, (task, num_outputs) in {
        LABELS: (Task.SEQUENCE, 3), SPANS: (Task.SPANS, 2),
    }.items():  # fmt: skip
        config = LoraConfig(task_type=str(task), r=4, target_modules=["q_proj", "down_proj"])
        save_classifier(classifier(base, task, num_outputs), config, adapters / name, seed=0)
    (folder / "packages").mkdir()
    packages = variants([DEMO / "adapters" / name for name in ADAPTERS], folder / "packages")
    arguments = ["--adapters", str(adapters), "--max-running", "16", "--max-waiting", "256"]
    with RunningServer(folder / "server", DEMO / "base", *arguments) as server:
        setting = Setting(ADAPTERS, packages, chats=CHATS, labels=LABELS, spans=SPANS)
        return campaign(server, setting, seconds=seconds)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--output", type=Path, help="file for the figures, as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = demo_campaign(arguments.seconds, Path(folder))
    done = ", ".join(f"{count} {kind}" for kind, count in sorted(outcome.done.items()))
    print(markdown(outcome.rows()))
    print(f"\n{outcome.done.total()} things done in {outcome.seconds:.0f} s ({done}), ", end="")
    print(f"{outcome.num_surprises} of them not as they had to be")
    for finding in outcome.findings:
        print(finding)
    if arguments.output:
        write_report(arguments.output, outcome.report())
    return int(bool(outcome.findings))


if __name__ == "__main__":
    sys.exit(main())
