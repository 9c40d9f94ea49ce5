"""The messages between the processes of tensor parallelism.

One leads: the engine process. The others follow: they execute its commands in order, and
acknowledge all but `Run`. Typed structs in MessagePack, as between frontend and engine; arrays are
their raw bytes.

Legend: T tokens, R rows whose logits are needed, B requests, M blocks of a request, S segments.
"""

from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from msgspec import Struct

from loramux_server.kernels.attention import AttentionBatch
from loramux_server.kernels.step_input import StepInput
from loramux_server.lora.segments import Residence, Segments
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.engine_sizes import EngineSizes


class Load(Struct, frozen=True, tag=True):
    """Load the model. The first command."""

    config: EngineConfig
    index: int
    """The follower's shard."""
    meeting: str
    """Rendezvous file of the processes, in a folder of its own."""


class Divide(Struct, frozen=True, tag=True):
    """Join the process group, and keep your shard of the model. The second command."""


class Allocate(Struct, frozen=True, tag=True):
    """Allocate memory for the KV cache and the adapters. The third command."""

    num_slots: int
    """Tokens that the KV cache holds."""
    sizes: EngineSizes


class Write(Struct, frozen=True, tag=True):
    """Read an adapter and copy your shard of it to rank rows, concurrently with steps."""

    number: int
    row: int
    source: AdapterSource


class Run(Struct, frozen=True, tag=True):
    """Run one step; see `StepInput`. Not acknowledged: its all-reduces keep processes in step."""

    token_T: bytes
    position_T: bytes
    sampled_R: bytes
    query_start_B: bytes
    context_B: bytes
    table_BM: bytes
    block_size: int
    slot_T: bytes
    start_S: bytes
    end_S: bytes
    row_S: bytes
    reads_hidden: bool

    @staticmethod
    def of(given: StepInput) -> "Run":
        """Return the command to run `given`, which is in host memory."""
        attention, segments = given.attention, given.segments
        return Run(
            _bytes(given.token_T),
            _bytes(given.position_T),
            _bytes(given.sampled_R),
            attention.query_start_B.tobytes(),
            attention.context_B.tobytes(),
            attention.table_BM.tobytes(),
            attention.block_size,
            _bytes(attention.slot_T),
            segments.start_S.tobytes() if segments else b"",
            segments.end_S.tobytes() if segments else b"",
            segments.row_S.tobytes() if segments else b"",
            given.reads_hidden,
        )

    def input(self, residence: Callable[[int], Residence]) -> StepInput:
        """Return the step to run; `residence` returns the adapter at a row."""
        context_B = _int32(self.context_B)
        segments = None
        if self.row_S:
            segments = Segments.build(
                _int32(self.start_S).tolist(),
                _int32(self.end_S).tolist(),
                [residence(row) for row in _int32(self.row_S).tolist()],
            )
        return StepInput(
            token_T=_int64(self.token_T),
            position_T=_int64(self.position_T),
            sampled_R=_int64(self.sampled_R),
            attention=AttentionBatch(
                query_start_B=_int32(self.query_start_B),
                context_B=context_B,
                table_BM=_int32(self.table_BM).reshape(len(context_B), -1),
                block_size=self.block_size,
                slot_T=_int64(self.slot_T),
            ),
            segments=segments,
            reads_hidden=self.reads_hidden,
        )


class Done(Struct, frozen=True, tag=True):
    """The acknowledgement of a command, or of its failure."""

    number: int = 0
    """Number of a `Write`; the other commands come one at a time and have none."""
    problem: str | None = None
    """Why the command failed; None if it did not."""
    reason: str = ""
    """For a failed `Write`, a name of `loramux.v1.ErrorReason` without its prefix."""


Command = Load | Divide | Allocate | Write | Run


def _bytes(x: torch.Tensor) -> bytes:
    return x.numpy().tobytes()


def _int32(data: bytes) -> npt.NDArray[np.int32]:
    # Copied, since received bytes are read-only, of which torch warns.
    return np.frombuffer(data, np.int32).copy()


def _int64(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(data, np.int64).copy())


encode = msgspec.msgpack.Encoder().encode
decode_command = msgspec.msgpack.Decoder(Command).decode
decode_done = msgspec.msgpack.Decoder(Done).decode
