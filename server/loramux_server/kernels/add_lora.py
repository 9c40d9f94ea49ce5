"""The segmented low-rank matmul, with output factors and shifts: its definition in plain torch.

Legend: T tokens, K input width, N output width over all parts of a group, R slab rows, S segments,
P parts.
"""

import numpy as np
import torch

from loramux_server.lora.segments import Int32, Segments
from loramux_server.lora.slab import DTYPES, affine_at, weights
from loramux_server.wire.weight_format import WeightFormat


def add_lora(
    y_TN: torch.Tensor,
    x_TK: torch.Tensor,
    a_RK: torch.Tensor,
    b_RN: torch.Tensor,
    columns: Int32,
    segments: Segments,
    group: int,
) -> None:
    """Add each segment's low-rank update to `y_TN`, then apply its factors and shifts, in place.

    Semantics, for segment s with tokens t0:t1, first row `row`, size `size`, and part p of rank r
    and scale f, with output columns n0:n1:

        A = weights(a[P*row + p*size :][:size])[:r],  B = weights(b[row:][:size])[:r, n0:n1]
        y[t0:t1, n0:n1] += (x[t0:t1] @ A.T * f) @ B
        y[t0:t1, n0:n1] = y[t0:t1, n0:n1] * factors[n0:n1] + shifts[n0:n1]

    where weights(rows) views the memory of these rows in the adapter's format: one float32 row
    holds two rows of a 16-bit format. factors, shifts = vectors(b, row + size), applied only if
    `affine_GSP` flags them for the part. Weights are read in place through views, never gathered;
    16-bit weights are widened once per segment.

    Args:
        y_TN: Output of the base layers, modified in place.
        x_TK: Their common input.
        a_RK: A rows of all adapters, P per rank row; float32, or 16-bit weights viewed as float32.
        b_RN: B rows of all adapters, likewise.
        columns: P + 1 column offsets; part p has columns[p] to columns[p + 1].
        segments: Which adapter applies to which tokens.
        group: Index of the group of layers.
    """
    num_parts = len(columns) - 1
    affine_SP = np.zeros_like(segments.rank_GSP[group])
    if segments.affine_GSP is not None:
        affine_SP = segments.affine_GSP[group]
    rows = zip(
        segments.start_S.tolist(),
        segments.end_S.tolist(),
        segments.row_S.tolist(),
        segments.size_S.tolist(),
        segments.format_S.tolist(),
        segments.rank_GSP[group].tolist(),
        segments.scale_GSP[group].tolist(),
        affine_SP.tolist(),
        strict=True,
    )
    for start, end, row, size, number, ranks, scales, kinds in rows:
        x = x_TK[start:end].to(a_RK.dtype)
        dtype = DTYPES[WeightFormat(number)]
        b = weights(b_RN[row : row + size], dtype)
        for part in range(num_parts):
            n0, n1 = columns[part : part + 2].tolist()
            y = y_TN[start:end, n0:n1]
            if rank := ranks[part]:
                first = num_parts * row + part * size
                a = weights(a_RK[first : first + size], dtype)[:rank].to(a_RK.dtype)
                h = (x @ a.T).mul_(scales[part])
                part_b = b[:rank, n0:n1].to(b_RN.dtype)
                if y.dtype == part_b.dtype:
                    y.addmm_(h, part_b)
                else:
                    y += (h @ part_b).to(y.dtype)
            if affine := affine_at(b_RN, row + size, kinds[part], n0, n1):
                y.copy_(affine.of(y))
