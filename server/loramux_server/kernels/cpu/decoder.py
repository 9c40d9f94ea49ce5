"""A stack of decoder layers on a CPU, as one program: no Python runs between layers.

Every layer has the same sequence of loops. The jobs of each kind of loop are one array, so a step
updates the fields of all layers at once.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from loramux_server.kernels.attention import AttentionBatch
from loramux_server.kernels.cpu.add_lora import serves
from loramux_server.kernels.cpu.attention import (
    ATTEND_JOB,
    QueryTiles,
    attend,
    describe_form,
    takes,
)
from loramux_server.kernels.cpu.expand import FEW, expand
from loramux_server.kernels.cpu.linear import LINEAR_JOB, LinearCpu
from loramux_server.kernels.cpu.lora_job import LORA_JOB, SegmentJobs
from loramux_server.kernels.cpu.pointwise import (
    ADD_JOB,
    GATE_JOB,
    NORM_JOB,
    ROTATE_JOB,
    add,
    gate,
    normalize,
    rope,
)
from loramux_server.kernels.cpu.program import Program
from loramux_server.kernels.cpu.shrink import shrink
from loramux_server.kernels.cpu.simd import WIDTH
from loramux_server.kernels.cpu.write_cache import WRITE_JOB, write
from loramux_server.kernels.decoder import Decoder, DecoderLayer, Norm, make_decoder
from loramux_server.kernels.projection import Projection
from loramux_server.lora.segments import Segments

if TYPE_CHECKING:
    from loramux_server.kernels.backend import Backend


def make_decoder_cpu(layers: Sequence[DecoderLayer], backend: "Backend", few: int = FEW) -> Decoder:
    """Implement `loramux_server.kernels.decoder.make_decoder`; for `few` see `AddLoraCpu`."""
    is_served = all(map(_is_served, layers)) and len(set(map(_shape, layers))) == 1
    return DecoderCpu(layers, few) if is_served else make_decoder(layers, backend)


def _is_served(layer: DecoderLayer) -> bool:
    projections = (layer.qkv, layer.output, layer.gate_up, layer.down)
    return (
        layer.keys_SJD.dtype == torch.float32
        and layer.keys_SJD.shape == layer.values_SJD.shape
        and layer.keys_SJD.shape[2] % (2 * WIDTH) == 0
        and takes(layer.form)
        and all(
            isinstance(p.linear, LinearCpu) and serves(p.linear.depth, p.columns)
            for p in projections
        )
    )


def _shape(layer: DecoderLayer) -> tuple[object, ...]:
    """Return what must be equal in all layers, since they share buffers and loops."""
    projections = (layer.qkv, layer.output, layer.gate_up, layer.down)
    return (
        layer.keys_SJD.shape,
        layer.query_norm is None,
        layer.key_norm is None,
        *(tuple(projection.columns.tolist()) for projection in projections),
    )


class DecoderCpu:
    """`make_decoder` for float32 on a CPU."""

    def __init__(self, layers: Sequence[DecoderLayer], few: int = FEW) -> None:
        self._layers = layers
        first, count = layers[0], len(layers)
        self._kv_heads, self._width = first.keys_SJD.shape[1:]
        self._norms = np.zeros(2 * count, NORM_JOB)
        self._head_norms = np.zeros(2 * count, NORM_JOB)
        self._rope = np.zeros(2 * count, ROTATE_JOB)
        self._writes = np.zeros(2 * count, WRITE_JOB)
        self._attention = np.zeros(count, ATTEND_JOB)
        self._linears = np.zeros(4 * count, LINEAR_JOB)
        self._loras = np.zeros(4 * count, LORA_JOB)
        self._loras["few"] = few
        self._adds = np.zeros(1, ADD_JOB)
        self._gates = np.zeros(count, GATE_JOB)
        self._groups = np.array([
            projection.group
            for layer in layers
            for projection in (layer.qkv, layer.output, layer.gate_up, layer.down)
        ])  # fmt: skip
        self._buffers: dict[str, torch.Tensor] = {}
        self._room = 0
        """Capacity of the buffers in tokens."""
        self._h = torch.empty(0)
        self._scores = torch.empty(0)
        self._tiles: QueryTiles | None = None
        self._segment_jobs: SegmentJobs | None = None
        for index, layer in enumerate(layers):
            self._describe(index, layer)
        self._sums_apart: bool | None = None
        """Whether o and down write to a buffer of their own; None: targets are not set yet."""
        self._plain, self._with_adapters = self._program(False), self._program(True)
        self._with_vectors = self._program(True, sums_apart=True)

    def __call__(
        self,
        hidden_TK: torch.Tensor,
        cos_TD: torch.Tensor,
        sin_TD: torch.Tensor,
        batch: AttentionBatch,
        segments: Segments | None,
    ) -> torch.Tensor:
        """Implement `loramux_server.kernels.decoder.make_decoder`."""
        num_tokens = len(hidden_TK)
        self._reserve(num_tokens)
        self._direct(segments is not None and segments.affine_GSP is not None)
        hidden = self._buffers["hidden"][:num_tokens]
        hidden.copy_(hidden_TK)
        cos_TD, sin_TD = cos_TD.contiguous(), sin_TD.contiguous()
        self._norms["rows"] = self._head_norms["rows"] = self._gates["rows"] = num_tokens
        self._adds["rows"] = self._linears["num_tokens"] = self._writes["num_tokens"] = num_tokens
        self._writes["slots"] = batch.slot_T.data_ptr()
        self._rope["rows"] = num_tokens
        self._rope["cos"], self._rope["sin"] = cos_TD.data_ptr(), sin_TD.data_ptr()
        if self._tiles is None or self._tiles.batch is not batch:
            heads = int(self._attention["num_heads"][0])
            self._tiles = QueryTiles(batch, heads // self._kv_heads)
            self._scores = self._tiles.describe(self._attention, heads, self._scores)
        program = self._plain
        if segments is not None:
            program = self._with_vectors if self._sums_apart else self._with_adapters
            self._take(segments, num_tokens)
        program.run()
        return hidden.clone()

    def _take(self, segments: Segments, num_tokens: int) -> None:
        if self._segment_jobs is None or self._segment_jobs.segments is not segments:
            self._segment_jobs = SegmentJobs(segments)
            self._segment_jobs.describe(self._loras, self._groups)
        needed = num_tokens * int(self._loras["num_parts"].max()) * self._segment_jobs.max_rank
        if self._h.numel() < needed:
            self._h = torch.empty(needed)
            self._loras["h"] = self._h.data_ptr()

    def _describe(self, index: int, layer: DecoderLayer) -> None:
        """Fill in the job fields of one layer that are the same in every step."""
        depth, heads = _features(layer.qkv)[0], _features(layer.output)[0] // self._width
        for place, norm in enumerate((layer.attention_norm, layer.mlp_norm)):
            job = self._norms[2 * index + place]
            _describe_norm(job, norm)
            job["heads"], job["x_stride"], job["out_stride"] = 1, 4 * depth, 4 * depth
        for place, projection in enumerate((layer.qkv, layer.output, layer.gate_up, layer.down)):
            self._describe_projection(4 * index + place, projection)
        self._gates["width"][index] = _features(layer.down)[0]
        row_bytes, head_bytes = 4 * _features(layer.qkv)[1], 4 * self._width
        for place, (norm_or_none, count) in enumerate(
            ((layer.query_norm, heads), (layer.key_norm, self._kv_heads))
        ):
            if norm_or_none:
                job = self._head_norms[2 * index + place]
                _describe_norm(job, norm_or_none)
                job["heads"], job["head_stride"] = count, head_bytes
                job["x_stride"] = job["out_stride"] = row_bytes
            job = self._rope[2 * index + place]
            job["heads"], job["width"] = count, self._width
            job["stride"], job["head_stride"] = row_bytes, head_bytes
        for place, cache in enumerate((layer.keys_SJD, layer.values_SJD)):
            job = self._writes[2 * index + place]
            job["cache"], job["num_heads"], job["width"] = (
                cache.data_ptr(), self._kv_heads, self._width,
            )  # fmt: skip
            job["stride"], job["head_stride"] = row_bytes, head_bytes
        job = self._attention[index]
        job["k"], job["v"] = layer.keys_SJD.data_ptr(), layer.values_SJD.data_ptr()
        job["num_heads"], job["num_kv_heads"] = heads, self._kv_heads
        job["key_width"] = job["value_width"] = self._width
        job["q_stride"], job["q_head_stride"] = row_bytes, head_bytes
        describe_form(job, layer.form)

    def _describe_projection(self, index: int, projection: Projection) -> None:
        linear, lora = self._linears[index], self._loras[index]
        assert isinstance(projection.linear, LinearCpu)
        projection.linear.describe(linear)
        depth, outputs = _features(projection)
        linear["x_stride"], linear["y_stride"] = 4 * depth, 4 * outputs
        if projection.a_RK is not None and projection.b_RN is not None:
            lora["a"], lora["b"] = projection.a_RK.data_ptr(), projection.b_RN.data_ptr()
        lora["columns"] = projection.columns.ctypes.data
        lora["num_parts"] = len(projection.columns) - 1
        lora["in_features"], lora["out_features"] = depth, outputs

    def _direct(self, sums_apart: bool) -> None:
        """Set the target of o and down: the hidden states, or with `sums_apart` a buffer."""
        if sums_apart is self._sums_apart:
            return
        self._sums_apart = sums_apart
        target = self._buffers["sum" if sums_apart else "hidden"].data_ptr()
        for jobs in (self._linears, self._loras):
            jobs["y"][1::4] = jobs["y"][3::4] = target
        self._linears["adds"][1::4] = self._linears["adds"][3::4] = not sums_apart

    def _reserve(self, num_tokens: int) -> None:
        """Grow the buffers to `num_tokens` tokens, and update their addresses in all jobs."""
        if num_tokens <= self._room:
            return
        self._room = num_tokens
        layer = self._layers[0]
        (depth, qkv), (seen, _) = _features(layer.qkv), _features(layer.output)
        gate_up, act = _features(layer.gate_up)[1], _features(layer.down)[0]
        widths = {"hidden": depth, "x": depth, "qkv": qkv, "seen": seen, "gate_up": gate_up,
                  "act": act, "sum": depth}  # fmt: skip
        self._buffers = {name: torch.empty(num_tokens, width) for name, width in widths.items()}
        at = {name: buffer.data_ptr() for name, buffer in self._buffers.items()}
        self._norms["x"], self._norms["out"] = at["hidden"], at["x"]
        for jobs in (self._linears, self._loras):
            for place, x in enumerate(("x", "seen", "x", "act")):
                jobs["x"][place::4] = at[x]
            jobs["y"][0::4], jobs["y"][2::4] = at["qkv"], at["gate_up"]
        self._sums_apart = None
        self._adds["x"], self._adds["y"], self._adds["width"] = at["sum"], at["hidden"], depth
        self._gates["y"], self._gates["out"] = at["gate_up"], at["act"]
        self._attention["q"], self._attention["out"] = at["qkv"], at["seen"]
        keys = at["qkv"] + 4 * seen
        values = keys + 4 * self._kv_heads * self._width
        for place, begin in enumerate((at["qkv"], keys)):
            self._rope["x"][place::2] = begin
            self._head_norms["x"][place::2] = self._head_norms["out"][place::2] = begin
        self._writes["x"][0::2], self._writes["x"][1::2] = keys, values

    def _program(self, has_adapters: bool, *, sums_apart: bool = False) -> Program:
        """Return the loops of a step.

        With `sums_apart` the outputs of o and down are computed in a buffer of their own and then
        added to the hidden states, since factors and shifts apply to the output alone.
        """
        program = Program()
        for index, layer in enumerate(self._layers):
            program.add(normalize, self._norms, 2 * index)
            self._add_projection(program, 4 * index, layer.qkv, has_adapters)
            # These loops split by tokens, so a thread reads only what it wrote: no barrier.
            for place in (2 * index, 2 * index + 1):
                if layer.query_norm:
                    program.add(normalize, self._head_norms, place, waits=False)
                program.add(rope, self._rope, place, waits=False)
            program.add(write, self._writes, 2 * index, waits=False)
            program.add(write, self._writes, 2 * index + 1)
            program.add(attend, self._attention, index)
            self._add_projection(program, 4 * index + 1, layer.output, has_adapters)
            # Adding and normalizing split by tokens, likewise.
            if sums_apart:
                program.add(add, self._adds, waits=False)
            program.add(normalize, self._norms, 2 * index + 1)
            self._add_projection(program, 4 * index + 2, layer.gate_up, has_adapters)
            program.add(gate, self._gates, index)
            self._add_projection(program, 4 * index + 3, layer.down, has_adapters)
            if sums_apart:
                program.add(add, self._adds, waits=False)
        program.close()
        return program

    def _add_projection(
        self, program: Program, index: int, projection: Projection, has_adapters: bool
    ) -> None:
        assert isinstance(projection.linear, LinearCpu)
        program.add(
            projection.linear.loop, self._linears, index, waits=not has_adapters, swaps=has_adapters
        )
        if has_adapters:
            program.add(shrink, self._loras, index)
            program.add(expand, self._loras, index)


def _features(projection: Projection) -> tuple[int, int]:
    assert isinstance(projection.linear, LinearCpu)
    return projection.linear.depth, projection.linear.outputs


def _describe_norm(job: Any, norm: Norm) -> None:
    job["weight"], job["width"] = norm.weight_K.data_ptr(), len(norm.weight_K)
    job["epsilon"] = norm.epsilon
