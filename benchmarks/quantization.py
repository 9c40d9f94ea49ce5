"""Speed and accuracy of quantized base weights.

Speed is that of decode steps on random weights of a real shape, as a ratio to float32 in the same
round. Accuracy is that of the embedded demo model, whose weights are trained: held-out prompts of
all its adapters are completed greedily, by the adapter and by the base alone, and the
log-probability of each token is compared with that of the unquantized weights.

    python -m benchmarks.quantization
"""

import json
import random
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Annotated

import typer

from benchmarks import machine
from benchmarks.fixture import SHAPES
from benchmarks.local_engine import LocalEngine, fixture_base, packaged
from loramux_server.kernels.weight_storage import Quantization
from loramux_server.text.tokenizer import TextTokenizer
from loramux_server.wire.ask import Ask
from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.messages import Submit
from loramux_server.wire.sampling import Sampling

DEMO = Path(__file__).parents[1] / "server/loramux_server/demo"
CONTEXT, STEPS, PROMPTS, TOKENS = 144, 20, 20, 12


@dataclass(frozen=True, slots=True)
class Row:
    """One quantization."""

    quantization: str
    speed: dict[int, float]
    """Batch size -> decode speed ÷ that of float32."""
    same_completions: float
    """Fraction of greedy completions that equal those of the unquantized weights."""
    logprob_error: float
    """Mean difference of a token's log-probability, in equal completions."""


def main(
    batch: Annotated[list[int] | None, typer.Option(help="Requests in the batch.")] = None,
    shape: Annotated[str, typer.Option(help=f"Base model: {', '.join(SHAPES)}.")] = "smollm2-135m",
    repeats: Annotated[int, typer.Option(help="Rounds; medians are reported.")] = 3,
    output: Annotated[Path | None, typer.Option(help="File for the result, as JSON.")] = None,
) -> None:
    """Print speed and accuracy of each quantization."""
    levels = batch or [1, 8, 32]
    with tempfile.TemporaryDirectory(prefix="loramux-bench-") as name:
        base = fixture_base(Path(name), SHAPES[shape])
        engines = {kind: LocalEngine(base, _config(kind)) for kind in Quantization}
        speeds = {level: _speeds(engines, level, repeats) for level in levels}
    exact = _answers(Quantization.NONE)
    rows = []
    for kind in Quantization:
        answers = exact if kind is Quantization.NONE else _answers(kind)
        pairs = list(zip(exact, answers, strict=True))
        row = Row(
            kind,
            {level: speeds[level][kind] for level in levels},
            mean(one[0] == other[0] for one, other in pairs),
            mean(
                abs(own - other)
                for (tokens, logprobs), (found, others) in pairs
                if tokens == found
                for own, other in zip(logprobs, others, strict=True)
            ),
        )
        rows.append(row)
        ratios = "  ".join(f"batch {level}: {ratio:.2f}" for level, ratio in row.speed.items())
        print(
            f"{kind:9} {ratios}  same completions {row.same_completions:.1%}  "
            f"logprob error {row.logprob_error:.5f}"
        )
    if output:
        record = {
            "command": "python -m benchmarks.quantization",
            "shape": shape,
            "rows": [asdict(row) for row in rows],
            "machine": machine.describe(),
        }
        output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _config(kind: Quantization) -> EngineConfig:
    return EngineConfig(model="", quantization=kind, kv_memory=1 << 29, adapter_memory=1 << 28)


def _speeds(
    engines: dict[Quantization, LocalEngine], level: int, repeats: int
) -> dict[Quantization, float]:
    ratios: dict[Quantization, list[float]] = {kind: [] for kind in engines}
    for engine in engines.values():
        engine.fill(level, [], CONTEXT)
    for _ in range(repeats):
        seconds = {kind: median(engine.time_steps(STEPS)) for kind, engine in engines.items()}
        for kind, taken in seconds.items():
            ratios[kind].append(seconds[Quantization.NONE] / taken)
    for engine in engines.values():
        engine.clear()
    return {kind: median(found) for kind, found in ratios.items()}


def _answers(kind: Quantization) -> list[tuple[list[int], list[float]]]:
    """Return the greedy completion of each prompt, and the log-probabilities of its tokens."""
    held_out = json.loads((DEMO / "held_out.json").read_text(encoding="utf-8"))
    answers: dict[int, tuple[list[int], list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="loramux-bench-") as name:
        folder = shutil.copytree(DEMO / "adapters", Path(name) / "adapters")
        names = sorted(path.name for path in folder.iterdir())
        sources = dict(zip(names, packaged(folder), strict=True))
        engine = LocalEngine(DEMO / "base", _config(kind))
        assert engine.info.tokenizer_json
        tokenizer = TextTokenizer(engine.info.tokenizer_json)
        sampling = Sampling(max_tokens=TOKENS, seed=0, temperature=0.0, num_logprobs=0)
        for adapter, task in sorted(held_out.items()):
            for prompt, _ in random.Random(0).sample(task["examples"], PROMPTS):
                tokens = tokenizer.encode(prompt, parse_special=False, add_special=True)
                for source in (sources[adapter], None):
                    number = len(answers)
                    answers[number] = ([], [])
                    engine.engine.receive([Submit(number, Ask(tokens, source, sampling))])
        is_open = set(answers)
        while is_open:
            for token in engine.step().tokens:
                answers[token.request_id][0].append(token.token)
                assert token.logprobs is not None
                answers[token.request_id][1].append(token.logprobs.chosen)
                if token.finish:
                    is_open.discard(token.request_id)
    return list(answers.values())


if __name__ == "__main__":
    typer.run(main)
