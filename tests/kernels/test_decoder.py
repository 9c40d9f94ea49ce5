"""A run of decoder layers: the program of the CPU against the definition."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from loramux_server.kernels.attention import AttentionBatch, AttentionForm
from loramux_server.kernels.backend import DEFINITIONS, choose_backend
from loramux_server.kernels.cpu.decoder import DecoderCpu, make_decoder_cpu
from loramux_server.kernels.cpu.linear import make_linear_cpu
from loramux_server.kernels.decoder import DecoderLayer, Norm, make_decoder
from loramux_server.kernels.linear import make_linear
from loramux_server.kernels.projection import Projection
from loramux_server.lora.segments import Residence, Segments
from loramux_server.wire.weight_format import WeightFormat

HIDDEN, HEADS, KV_HEADS, WIDTH, MLP, SLOTS, ROWS = 64, 4, 2, 32, 96, 96, 64
BLOCK = 4
KINDS_GP = np.array([[3, 0, 1], [3, 0, 0], [2, 1, 0], [1, 0, 0]] * 2, np.int32)
"""`Affine.kinds` of each layer."""


def make_layers(
    has_norms: bool = False, has_bias: bool = False, has_sinks: bool = False
) -> dict[str, list[DecoderLayer]]:
    """Return the same layers twice, with caches of their own."""
    torch.manual_seed(0)
    layers: dict[str, list[DecoderLayer]] = {"definition": [], "cpu": []}

    def both(group: int, inputs: int, *outputs: int) -> tuple[Projection, Projection]:
        weight = torch.randn(sum(outputs), inputs) / inputs**0.5
        bias = torch.randn(sum(outputs)) if has_bias else None
        columns = np.cumsum([0, *outputs], dtype=np.int32)
        a = torch.randn(len(outputs) * ROWS, inputs) / inputs**0.5
        b = torch.randn(ROWS, sum(outputs)) / 8
        return tuple(
            Projection(make(weight, bias), columns, a, b, group)
            for make in (make_linear, make_linear_cpu)
        )  # type: ignore[return-value]

    def norm(width: int) -> Norm:
        return Norm(1 + torch.randn(width) / 8, 1e-5)

    kv = KV_HEADS * WIDTH
    for index in range(2):
        qkv = both(4 * index, HIDDEN, HEADS * WIDTH, kv, kv)
        output = both(4 * index + 1, HEADS * WIDTH, HIDDEN)
        gate_up = both(4 * index + 2, HIDDEN, MLP, MLP)
        down = both(4 * index + 3, MLP, HIDDEN)
        common = {
            "attention_norm": norm(HIDDEN),
            "query_norm": norm(WIDTH) if has_norms else None,
            "key_norm": norm(WIDTH) if has_norms else None,
            "form": AttentionForm(
                WIDTH**-0.5,
                window=7 if index else 0,
                sinks_H=torch.randn(HEADS) if has_sinks and index else None,
            ),
            "mlp_norm": norm(HIDDEN),
        }
        keys, values = torch.randn(2, SLOTS, KV_HEADS, WIDTH)
        for place, name in enumerate(layers):
            layers[name].append(
                DecoderLayer(
                    **common,  # type: ignore[arg-type]
                    qkv=qkv[place],
                    keys_SJD=keys.clone(),
                    values_SJD=values.clone(),
                    output=output[place],
                    gate_up=gate_up[place],
                    down=down[place],
                )
            )
    return layers


def make_batch(queries: list[int], contexts: list[int]) -> AttentionBatch:
    """Return requests whose blocks lie in no order."""
    generator = np.random.default_rng(0)
    free = generator.permutation(SLOTS // BLOCK).astype(np.int32)
    table = np.zeros((len(queries), max(-(-c // BLOCK) for c in contexts)), np.int32)
    slots: list[int] = []
    for row, (count, context) in enumerate(zip(queries, contexts, strict=True)):
        blocks, free = np.split(free, [-(-context // BLOCK)])
        table[row, : len(blocks)] = blocks
        slots += [int(blocks[p // BLOCK]) * BLOCK + p % BLOCK for p in range(context)][-count:]
    return AttentionBatch(
        query_start_B=np.cumsum([0, *queries], dtype=np.int32),
        context_B=np.array(contexts, np.int32),
        table_BM=table,
        block_size=BLOCK,
        slot_T=torch.tensor(slots),
    )


def make_segments(
    borders: list[tuple[int, int]], ranks: list[int], has_vectors: bool = False
) -> Segments:
    """Return adapters of these ranks; the last has no part in the first group.

    Rows behind the first hold its factors and shifts, if it has them: any rows will do.
    """
    adapters: list[Residence] = []
    row = 0
    for rank in ranks:
        rank_GP = np.full((8, 3), rank, np.int32)
        rank_GP[:, 1] = rank // 2
        size = -(-rank // 8) * 8
        adapters.append(
            Residence(
                row, size, WeightFormat.FLOAT32, rank_GP, np.full((8, 3), 4 / rank, np.float32),
                affine_GP=KINDS_GP if has_vectors and not adapters else None,
            )
        )  # fmt: skip
        row += size
    adapters[-1].rank_GP[0] = 0
    starts, ends = zip(*borders, strict=True)
    return Segments.build(list(starts), list(ends), adapters)


BATCHES = {
    "decode": ([1, 1, 1], [9, 1, 14]),
    "prompts": ([5, 17], [5, 20]),
    "mixed": ([1, 6, 1, 30], [12, 6, 3, 33]),
}


@pytest.mark.parametrize("adapters", ["base", "adapters", "vectors"])
@pytest.mark.parametrize("has_norms", [False, True], ids=["plain", "head-norms-and-sinks"])
@pytest.mark.parametrize("batch", BATCHES)
def test_the_program_computes_what_is_defined(batch: str, has_norms: bool, adapters: str) -> None:
    layers = make_layers(has_norms=has_norms, has_bias=has_norms, has_sinks=has_norms)
    program = DecoderCpu(layers["cpu"])
    defined = make_decoder(layers["definition"], DEFINITIONS)
    queries, contexts = BATCHES[batch]
    # A larger batch before it and the same one after it: buffers are used again.
    batches = ([40], [40]), (queries, contexts), (queries, contexts)
    for number, (counts, lengths) in enumerate(batches):
        tokens = sum(counts)
        hidden, angle = torch.randn(tokens, HIDDEN), torch.randn(tokens, WIDTH)
        where = make_batch(counts, lengths)
        segments = None
        if adapters != "base":
            split = max(1, tokens // 3)
            borders = [(0, split), (split + 1, tokens)]
            segments = make_segments(borders, [8, 20], adapters == "vectors" and number != 1)
        arguments = (angle.cos(), angle.sin(), where, segments)
        given = hidden.clone()
        torch.testing.assert_close(
            program(given, *arguments), defined(hidden, *arguments), rtol=1e-4, atol=1e-4
        )
        assert torch.equal(given, hidden)
    for one, other in zip(layers["cpu"], layers["definition"], strict=True):
        torch.testing.assert_close(one.keys_SJD, other.keys_SJD, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one.values_SJD, other.values_SJD, rtol=1e-4, atol=1e-4)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    layers = make_layers()["cpu"]
    hidden, angle = torch.randn(3, HIDDEN), torch.randn(3, WIDTH)
    where = make_batch([1, 1, 1], [9, 5, 14])
    together = DecoderCpu(layers)(hidden, angle.cos(), angle.sin(), where, None)
    alone = replace(
        where,
        query_start_B=np.array([0, 1], np.int32),
        context_B=where.context_B[1:2],
        table_BM=where.table_BM[1:2],
        slot_T=where.slot_T[1:2],
    )
    one = DecoderCpu(layers)(hidden[1:2], angle[1:2].cos(), angle[1:2].sin(), alone, None)
    torch.testing.assert_close(one, together[1:2], rtol=1e-5, atol=1e-5)


def test_shapes_that_do_not_fill_vectors_take_the_plain_way() -> None:
    layers = make_layers()["definition"]
    decoder = make_decoder_cpu(layers, choose_backend("cpu", torch.device("cpu")))
    assert not isinstance(decoder, DecoderCpu)


def test_layers_of_different_shapes_take_the_plain_way() -> None:
    layers = make_layers()["cpu"]
    backend = choose_backend("cpu", torch.device("cpu"))
    assert isinstance(make_decoder_cpu(layers, backend), DecoderCpu)
    wider = replace(layers[1], gate_up=layers[1].qkv)
    assert not isinstance(make_decoder_cpu([layers[0], wider], backend), DecoderCpu)
