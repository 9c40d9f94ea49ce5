"""Servers to which harm is done, each with another engine or base, and what has to come of them."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import LoraConfig

from loramux.types import PositionLogprobs
from loramux_adapters.head import Task
from tests.support.adapters import save_adapter, save_tuned
from tests.support.demo import DEMO
from tests.support.encoder_heads import save_headed
from tests.support.encoder_models import own_model
from tests.support.fake_server import FakeServer, answered, asked
from tests.support.labelled import TEXTS, save_reader
from tests.support.load import Answer, Ask
from tests.support.models import save_model, tiny_model
from tests.support.server import RunningServer
from tests.support.writers import ending_tokenizer, save_writer

WATCHDOG = 2.0
Known = tuple[Answer, Callable[[random.Random], Ask]]
"""What has to come of what is asked, and what chooses that."""
ENGINES = ("fake", "real", "hybrid", "encoder", "seq2seq")
HYBRID = "qwen3.5"
READERS = {"mood": ["query"], "topic": ["value", "intermediate.dense"], "tone": ["output.dense"]}
"""Adapters of an encoder that label texts -> what they change."""
WRITERS = {"plain": ["q", "v"], "wide": ["q", "k", "v", "o", "wi", "wo"]}
"""Adapters of a base that writes what it does not read -> likewise."""
WRITER_MEMORY = 250_000
"""Bytes for KV blocks of that base, in which not all streams have room."""
HYBRID_ADAPTERS = {"recurrent": ["in_proj_qkv", "out_proj"], "both": ["in_proj_z", "q_proj"]}
HYBRID_MEMORY = 160_000
"""Bytes for KV blocks and states, of which there are five."""
MIN_MARGIN = 1e-3
"""By which the best token has to be ahead of the next, in log-probability."""


@contextmanager
def started(engine: str, folder: Path) -> Iterator[RunningServer]:
    """Yield a server with a fake or a real engine, or one of another base."""
    arguments = ["--watchdog", str(WATCHDOG), "--quarantine-deaths", "0", "--drain-timeout", "30"]
    if engine == "fake":
        with FakeServer(folder, *arguments) as server:
            yield server
    else:
        with real_server(engine, folder, arguments) as server:
            yield server


def real_server(engine: str, folder: Path, arguments: list[str]) -> RunningServer:
    """Return a server of the embedded model, or of a tiny one of another kind."""
    if engine == "real":
        more = ["--adapters", str(DEMO / "adapters"), "--deterministic"]
        return RunningServer(folder, DEMO / "base", *arguments, *more)
    base, adapters = folder / "base", folder / "adapters"
    more = ["--adapters", str(adapters)]
    if engine == "encoder":
        save_reader(base)
        for name, targets in READERS.items():
            config = LoraConfig(task_type=str(Task.SEQUENCE), r=4, target_modules=targets)
            save_headed(base, Task.SEQUENCE, config, adapters / name)
        return RunningServer(folder, base, *arguments, *more)
    if engine == "seq2seq":
        save_writer("t5", base, ending_tokenizer())
        for seed, (name, targets) in enumerate(WRITERS.items()):
            config = LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, target_modules=targets)
            save_tuned(own_model(base), config, adapters / name, seed=seed)
        return RunningServer(folder, base, *arguments, *more, "--kv-memory", str(WRITER_MEMORY))
    save_model(base, HYBRID)
    for seed, (name, targets) in enumerate(HYBRID_ADAPTERS.items()):
        model = tiny_model(HYBRID, vocab_size=259)
        save_adapter(model, adapters / name, seed=seed, r=4, target_modules=targets)
    # Of fewer than those that come at once there are states.
    return RunningServer(folder, base, *arguments, *more, "--kv-memory", str(HYBRID_MEMORY))


def known(engine: str, server: RunningServer, max_tokens: int) -> Known:
    """Return what comes of what is asked of a `server` that `started` has yielded."""
    if engine == "fake":
        return answered, asked
    if engine == "encoder":
        return known_labels(server)
    return known_answers(server, max_tokens)


def known_answers(server: RunningServer, max_tokens: int) -> Known:
    """Return what a real engine makes of some prompts, and a choice of them.

    Where the second best token is as good but for rounding, a prompt is left out.
    """
    words = ["abandon ->", "cat ->", "window ->", "seven ->"]
    found: dict[Ask, tuple[int, ...]] = {}
    with server.client() as client:
        for adapter in (None, *(each.name for each in client.adapters.list())):
            for word in words:
                answer = client.generate(
                    word, adapter=adapter, max_tokens=max_tokens, temperature=0.0,
                    ignore_eos=True, logprobs=2,
                )  # fmt: skip
                if all(margin(each) > MIN_MARGIN for each in answer.logprobs):
                    found[word, adapter] = answer.token_ids
    assert len(found) > len(words)
    return lambda ask, count: found[ask][:count], lambda choice: choice.choice(list(found))


def known_labels(server: RunningServer) -> Known:
    """Return how adapters label some texts, where that is beyond doubt, and a choice of those."""
    found: dict[Ask, int] = {}
    with server.client() as client:
        for adapter in READERS:
            results = client.classify(TEXTS, adapter=adapter, logits=True).results
            for text, result in zip(TEXTS, results, strict=True):
                second, first = sorted(result.logits)[-2:]
                if first - second > MIN_MARGIN:
                    found[text, adapter] = result.labels[0].index
    assert len(found) > len(TEXTS)
    return lambda ask, count: (found[ask],) * count, lambda choice: choice.choice(list(found))


def margin(logprobs: PositionLogprobs) -> float:
    first, second = logprobs.top
    return first.logprob - second.logprob
