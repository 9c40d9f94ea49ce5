"""An engine process whose queue and batches are real and whose model is not.

A step takes as long as a test says, so that all times follow from what is asked.
"""

import json
import time
from pathlib import Path

import torch

from loramux_server.engine.batch import Batch
from loramux_server.engine.process import Inbox, inherited_socket
from loramux_server.wire.channel import read_message, write_message
from loramux_server.wire.engine_config import decode_config
from loramux_server.wire.messages import Ready, encode
from loramux_server.wire.model_info import ModelInfo
from tests.support.engine_sizes import sizes_of
from tests.support.fake import BLOCK_SIZE, VOCAB, FakeModel, fake_engine

NUM_BLOCKS = 512
CONTEXT = NUM_BLOCKS * BLOCK_SIZE


class SleepyModel(FakeModel):
    """Sleeps in each step."""

    def __init__(self, step_seconds: float, token_seconds: float) -> None:
        super().__init__()
        self._step_seconds = step_seconds
        self._token_seconds = token_seconds

    def run(self, batch: Batch) -> torch.Tensor:
        time.sleep(self._step_seconds + self._token_seconds * len(batch.input.token_T))
        return super().run(batch)


def main() -> None:
    connection = inherited_socket("engine")
    first = read_message(connection)
    assert first is not None
    config = decode_config(first)
    assert config.block_size == BLOCK_SIZE
    sizes = sizes_of(config, free=NUM_BLOCKS)
    state = json.loads(Path(config.model).read_text())
    inbox = Inbox(connection)
    inbox.is_awaited = True
    engine, *_ = fake_engine(
        num_blocks=NUM_BLOCKS, rows=8, max_running=sizes.max_running,
        max_batch_tokens=sizes.max_batch_tokens, max_waiting=config.max_waiting,
        model=SleepyModel(state["step_seconds"], state["token_seconds"]),
        clock=time.perf_counter,
    )  # fmt: skip
    info = ModelInfo(
        name="fake", architecture="Fake", fingerprint="sha256:queueing", dtype="float32",
        device="cpu", context_length=CONTEXT, vocab_size=VOCAB, num_parameters=1,
        eos_token_ids=[], tokenizer_json=None, layers={}, adapter_rows=8,
        max_running=sizes.max_running, num_blocks=NUM_BLOCKS, sizes=sizes,
    )  # fmt: skip
    write_message(connection, encode(Ready(info)))
    try:
        while not inbox.is_closed:
            engine.receive(inbox.take(wait=not engine.can_step))
            write_message(connection, encode(engine.step()))
    except BrokenPipeError:
        return
