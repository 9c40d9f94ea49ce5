"""The engine process of `FakeServer`: speaks as an engine does, and adds up numbers."""

import json
import os
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path

from loramux_server.engine.out_of_memory import exit_on_out_of_memory
from loramux_server.wire.ask import Ask
from loramux_server.wire.channel import read_message, write_message
from loramux_server.wire.engine_config import EngineConfig, decode_config
from loramux_server.wire.messages import (
    BatchSize,
    CacheStats,
    Cancel,
    Finish,
    Pause,
    Ready,
    Report,
    Resume,
    Scores,
    Stats,
    Submit,
    Token,
    decode_to_engine,
    encode,
)
from loramux_server.wire.model_info import ModelInfo
from tests.support.engine_sizes import sizes_of
from tests.support.fake_server import (
    CONTEXT,
    DIES,
    EXHAUSTS,
    HANGS,
    RAISES,
    STOPS,
    VOCAB,
    answer,
)


class FakeEngine:
    """Serves on one end of a socket pair."""

    def __init__(self, connection: socket.socket, step_seconds: float) -> None:
        self._connection = connection
        self._step_seconds = step_seconds
        self._running: dict[int, Ask] = {}
        self._paused: dict[int, Ask] = {}
        self._made: dict[int, int] = {}

    def run(self) -> None:
        while True:
            timeout = 0 if self._running else None
            while select.select([self._connection], [], [], timeout)[0]:
                raw = read_message(self._connection)
                if raw is None:
                    return
                self._receive(raw)
                timeout = 0
            write_message(self._connection, encode(self._step()))

    def _receive(self, raw: bytes) -> None:
        message = decode_to_engine(raw)
        if isinstance(message, Submit):
            self._running[message.request_id] = message.ask
            self._made[message.request_id] = 0
            with exit_on_out_of_memory(self._connection):
                misbehave(message.ask.prompt[0])
        elif isinstance(message, Cancel):
            self._running.pop(message.request_id, None)
            self._paused.pop(message.request_id, None)
        elif isinstance(message, Pause) and message.request_id in self._running:
            self._paused[message.request_id] = self._running.pop(message.request_id)
        elif isinstance(message, Resume) and message.request_id in self._paused:
            self._running[message.request_id] = self._paused.pop(message.request_id)

    def _step(self) -> Report:
        tokens, scores = [], []
        batch = None
        if self._running:
            time.sleep(self._step_seconds)
            batch = BatchSize(len(self._running), len(self._running), 0, self._step_seconds)
        for request_id, ask in list(self._running.items()):
            if ask.pooling:
                scores.append(Scores(request_id, struct.pack("<f", 1.0)))
                del self._running[request_id]
                continue
            self._made[request_id] += 1
            count = self._made[request_id]
            is_last = count == ask.sampling.max_tokens
            token = answer(ask.prompt, count)[-1]
            tokens.append(Token(request_id, token, Finish.LENGTH if is_last else None))
            if is_last:
                del self._running[request_id]
        stats = Stats(
            running=len(self._running), waiting=0, paused=len(self._paused),
            used_blocks=len(self._running), preemptions=0, prompt_tokens=0, shared_tokens=0,
            device=CacheStats(), host=CacheStats(),
        )  # fmt: skip
        return Report(stats=stats, tokens=tokens, scores=scores, batch=batch)


def misbehave(token: int) -> None:
    if token == DIES:
        os.kill(os.getpid(), signal.SIGSEGV)
    elif token == HANGS:
        time.sleep(1e6)
    elif token == RAISES:
        raise RuntimeError("a defect")
    elif token == EXHAUSTS:
        bytearray(1 << 62)
    elif token == STOPS:
        os.kill(os.getpid(), signal.SIGSTOP)


def model(config: EngineConfig) -> ModelInfo:
    sizes = sizes_of(config, free=64)
    return ModelInfo(
        name="fake", architecture="Fake", fingerprint="sha256:fake", dtype="float32", device="cpu",
        context_length=CONTEXT, vocab_size=VOCAB, num_parameters=1, eos_token_ids=[],
        tokenizer_json=None, layers={}, adapter_rows=8,
        max_running=sizes.max_running, num_blocks=64, sizes=sizes, embedding_width=1,
    )  # fmt: skip


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    first = read_message(connection)
    assert first is not None
    config = decode_config(first)
    state = json.loads(Path(config.model).read_text())
    write_message(connection, encode(Ready(model(config))))
    try:
        FakeEngine(connection, state["step_seconds"]).run()
    except BrokenPipeError:
        return
