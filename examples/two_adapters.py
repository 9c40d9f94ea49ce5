"""Train two adapters for the embedded base, serve them, merge them and serve the result.

One classifies opinions, trained on lines of text and label; one translates to Pig Latin, trained on
lines of prompt and completion. Start a server with `loramux demo --keep`, then run
``python -m examples.two_adapters --server HOST:PORT`` in the root of the repository.
"""

import argparse
import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random

from loramux import Client
from loramux_adapters import open_package
from loramux_adapters.train.methods import Shape
from loramux_adapters.train.plan import Plan
from loramux_adapters.train.run import train
from loramux_adapters.weights.merge import MergeOptions, merge

from .demo_model.tasks import TASKS

BASE = Path(__file__).parents[1] / "server" / "loramux_server" / "demo" / "base"
ADAPTERS = {"opinions": "sentiment", "pig-latin": "piglatin"}
"""Name of each adapter -> the task of the demo model that it learns."""
MERGED = "opinions-and-pig-latin"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of an adapter to a prompt that it was not trained on."""

    adapter: str
    digest: str
    prompt: str
    wanted: str
    text: str


def run(
    server: str, folder: Path, *, examples: int, epochs: int, asked: int, threads: int | None = None
) -> list[Answer]:
    """Train, push, call, merge, push and call again; files are kept in `folder`."""
    packages = {}
    for name, job in ADAPTERS.items():
        data = folder / f"{name}.jsonl"
        write_examples(data, job, examples)
        packages[name] = folder / f"{name}.safetensors"
        plan = Plan(
            base=BASE,
            base_name="loramux-demo",
            data=data,
            shape=Shape(rank=16, alpha=32.0),
            epochs=epochs,
            learning_rate=4e-3,
            threads=threads,
        )
        with packages[name].open("w+b") as file:
            losses = train(plan, file).evaluation
        print(f"{name}: evaluation loss {losses[0].loss:.3f} -> {losses[-1].loss:.3f}", flush=True)
    packages[MERGED] = folder / f"{MERGED}.safetensors"
    with ExitStack() as stack:
        sources = [stack.enter_context(open_package(packages[name])) for name in ADAPTERS]
        with packages[MERGED].open("w+b") as file:
            merge(sources, file, MergeOptions(method="cat"))
    with Client(server) as client:
        digests = {name: client.adapters.upload(name, packages[name]).digest for name in packages}
        return [
            Answer(name, digests[name], prompt, wanted, text)
            for name in packages
            for job in ([ADAPTERS[name]] if name in ADAPTERS else ADAPTERS.values())
            for prompt, wanted in questions(job, asked)
            for text in [
                client.generate(prompt, adapter=name, temperature=0, max_tokens=32).text.strip()
            ]
        ]


def write_examples(path: Path, job: str, count: int) -> None:
    """Write `count` examples of a task to `path`, as JSON lines."""
    rng = Random(job)
    pairs = [TASKS[job].example(rng) for _ in range(count)]
    lines = [
        {"text": text, "label": answer}
        if job == "sentiment"
        else {"prompt": f"{text} ->", "completion": f" {answer}"}
        for text, answer in pairs
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


def questions(job: str, count: int) -> list[tuple[str, str]]:
    """Return prompts that are not among the examples of a task, with the right answers."""
    return [(f"{text} ->", answer) for text, answer in TASKS[job].held_out(count)]


def main() -> None:
    """Run it all and print each answer."""
    parser = argparse.ArgumentParser(description="Train, serve and merge two adapters.")
    parser.add_argument("--server", default="127.0.0.1:50051", help="HOST:PORT of the demo server")
    parser.add_argument("--out", type=Path, default=Path("two_adapters"), help="folder for files")
    parser.add_argument("--examples", type=int, default=1500, help="training examples per task")
    parser.add_argument("--epochs", type=int, default=4, help="training epochs")
    parser.add_argument("--threads", type=int, help="CPU threads for training")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for answer in run(
        options.server,
        options.out,
        examples=options.examples,
        epochs=options.epochs,
        asked=5,
        threads=options.threads,
    ):
        verdict = "right" if answer.text == answer.wanted else f"expected {answer.wanted}"
        print(f"{answer.adapter:<24}{answer.prompt} {answer.text}  ({verdict})")


if __name__ == "__main__":
    main()
