"""The server compared with PEFT's own mixed batch, on the same requests.

The server answers them over gRPC, streaming, in a closed loop. PEFT (`adapter_names`) runs them in
this process, in static batches of the same size with padded prompts, without any overhead of
serving. Random weights of SmolLM2-135M's shape, adapters of ranks 8, 16, 32, 64 on all seven
projections.

    python -m benchmarks.vs_peft --concurrency 32
"""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from peft import PeftModel

from benchmarks import load, machine, server
from benchmarks.fixture import SHAPES, make_adapters, make_base
from benchmarks.random_adapters import with_adapters
from benchmarks.random_bases import load_base
from loramux.bench import Planned, parse_lengths, plan

RANKS = [8, 16, 32, 64]


def main(
    concurrency: Annotated[int, typer.Option(help="Concurrent requests; PEFT's batch size.")] = 32,
    requests: Annotated[int, typer.Option(help="Requests per run.")] = 64,
    adapters: Annotated[int, typer.Option(help="Distinct adapters, cycled through.")] = 32,
    prompt: Annotated[str, typer.Option(help="Prompt tokens: N or LOW:HIGH.")] = "32:256",
    tokens: Annotated[int, typer.Option(help="Output tokens of each request.")] = 64,
    shape: Annotated[str, typer.Option(help=f"Base model: {', '.join(SHAPES)}.")] = "smollm2-135m",
    repeats: Annotated[int, typer.Option(help="Runs of each; medians are reported.")] = 3,
    output: Annotated[Path | None, typer.Option(help="File for the result, as JSON.")] = None,
) -> None:
    """Compare output tokens per second of loramux and of PEFT's mixed batch."""
    chosen = SHAPES[shape]
    with tempfile.TemporaryDirectory(prefix="loramux-bench-") as name:
        folder = Path(name)
        base = make_base(folder / "base", chosen)
        names = make_adapters(folder / "adapters", chosen, RANKS, adapters)

        def workload(popularity: str, seed: int) -> list[Planned]:
            return plan(
                requests, popularity=popularity, adapters=names, prompt=parse_lengths(prompt),
                output=parse_lengths(str(tokens)), vocab_size=chosen.vocab, seed=seed,
            )  # fmt: skip

        results: dict[str, list[float]] = {"loramux": [], "loramux, base only": [], "PEFT": []}
        arguments = ("--adapters", str(folder / "adapters"), "--max-running", str(concurrency))
        with server.running(folder / "server", base, *arguments) as own:
            load.run(own.target, workload("distinct", 0)[:adapters], concurrency)  # load
            for seed in range(repeats):
                for label, popularity in (
                    ("loramux", "distinct"),
                    ("loramux, base only", "base"),
                ):
                    report = load.run(own.target, workload(popularity, seed), concurrency)
                    results[label].append(report.output_tokens_per_second)
        model = with_adapters(load_base(base), folder / "adapters", adapters)
        for seed in range(repeats):
            results["PEFT"].append(_run_peft(model, workload("distinct", seed), concurrency))
    _show(results, concurrency, adapters)
    if output:
        record = {
            "command": "python -m benchmarks.vs_peft",
            "shape": shape,
            "concurrency": concurrency,
            "requests": requests,
            "adapters": adapters,
            "ranks": RANKS,
            "prompt_tokens": prompt,
            "output_tokens": tokens,
            "output_tokens_per_second": results,
            "ratio_to_peft": median(results["loramux"]) / median(results["PEFT"]),
            "machine": machine.describe(),
        }
        output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


@torch.inference_mode()
def _run_peft(model: PeftModel, requests: Sequence[Planned], batch_size: int) -> float:
    begin = time.perf_counter()
    count = 0
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        longest = max(len(request.prompt) for request in batch)
        tokens = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, request in enumerate(batch):
            tokens[row, longest - len(request.prompt) :] = torch.tensor(request.prompt)
            mask[row, longest - len(request.prompt) :] = 1
        new = batch[0].max_tokens
        out = model.generate(
            input_ids=tokens, attention_mask=mask, max_new_tokens=new, min_new_tokens=new,
            do_sample=False, pad_token_id=0, adapter_names=[r.adapter for r in batch],
        )  # fmt: skip
        count += len(batch) * (out.shape[1] - longest)
    return count / (time.perf_counter() - begin)


def _show(results: dict[str, list[float]], concurrency: int, adapters: int) -> None:
    peft, own_base = median(results["PEFT"]), median(results["loramux, base only"])
    print(f"{adapters} adapters in turn, {concurrency} requests at once, output tokens/s:")
    print(f"{'':24}{'median':>8}{'/ PEFT':>8}{'/ base':>8}   runs")
    for label, runs in results.items():
        value = median(runs)
        shown = " ".join(f"{run:.1f}" for run in runs)
        print(f"{label:24}{value:8.1f}{value / peft:8.2f}{value / own_base:8.2f}   {shown}")


if __name__ == "__main__":
    typer.run(main)
