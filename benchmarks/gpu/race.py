"""Race between loads and steps: adapters are evicted and reloaded while others generate tokens."""

import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from benchmarks.fixture import SHAPES, make_adapters
from benchmarks.local_engine import packaged
from loramux_server.engine.build import build_engine
from loramux_server.engine.engine import Engine
from loramux_server.engine.residents import loader_threads
from loramux_server.models.decoder_model import prepare
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.ask import Ask
from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.messages import Submit
from loramux_server.wire.sampling import Sampling

_ADAPTERS, _RUNNING, _TOKENS = 12, 6, 24
_RANKS = (8, 24, 16, 5)


def race(device: torch.device, seconds: float, shape: str = "small") -> dict[str, int]:
    """Return the number of requests, of answers that differ from those alone, and of loads.

    About a third of the adapters fit, so most requests load one and evict another. The expected
    answers are computed first, one request at a time.
    """
    chosen = SHAPES[shape]
    torch.manual_seed(0)
    module = LlamaForCausalLM(chosen.config()).to(device)
    with (
        tempfile.TemporaryDirectory() as name,
        loader_threads(device=device) as executor,  # as in a server
    ):
        make_adapters(Path(name), chosen, _RANKS, _ADAPTERS)
        sources = packaged(Path(name))
        base = prepare(module)
        row_bytes = 4 * sum(group.shape.row_weights for group in base.groups)
        config = EngineConfig(
            model="", kernels="triton", max_running=_RUNNING, prefix_cache=False,
            adapter_memory=row_bytes * 24 * _ADAPTERS // 3,
            kv_memory=chosen.kv_bytes * 64 * _RUNNING, block_size=16, max_context=64,
        )  # fmt: skip
        engine, _ = build_engine(base, config, executor, lambda: None)
        rng = random.Random(0)
        prompts = [[rng.randrange(3, chosen.vocab) for _ in range(9)] for _ in sources]
        loads = Counter[str]()
        alone = [
            answers(engine, [(prompt, source)], loads)[0]
            for prompt, source in zip(prompts, sources, strict=True)
        ]
        found: Counter[str] = Counter(answered=0, different=0)
        end = time.monotonic() + seconds
        loads.clear()
        while time.monotonic() < end:
            picked = [rng.randrange(len(sources)) for _ in range(2 * _RUNNING)]
            given = answers(engine, [(prompts[i], sources[i]) for i in picked], loads)
            found["answered"] += len(picked)
            found["different"] += sum(
                tokens != alone[i] for i, tokens in zip(picked, given, strict=True)
            )
        engine.check()
    return {**found, "loads": loads["device"]}


def answers(
    engine: Engine,
    requests: list[tuple[list[int], AdapterSource]],
    loads: Counter[str],
) -> list[list[int]]:
    """Return the tokens of each of `requests`, which run together, and count `loads` by tier."""
    tokens: dict[int, list[int]] = {}
    open_requests = set()
    for number, (prompt, source) in enumerate(requests):
        sampling = Sampling(max_tokens=_TOKENS, seed=0, temperature=0.0, ignore_eos=True)
        engine.receive([Submit(number, Ask(prompt, source, sampling))])
        tokens[number] = []
        open_requests.add(number)
    while open_requests:
        if not engine.can_step:
            time.sleep(0.0005)
            continue
        report = engine.step()
        if report.failures:
            raise SystemExit(f"a request failed: {report.failures[0]}")
        loads.update(load.tier for load in report.loads)
        for token in report.tokens:
            tokens[token.request_id].append(token.token)
            if token.finish:
                open_requests.discard(token.request_id)
    return [tokens[number] for number in range(len(requests))]
